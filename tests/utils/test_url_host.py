from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from baps.utils.url_host import url_host


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("::1", "[::1]"),
        ("::", "[::]"),
        ("fe80::1%eth0", "[fe80::1%eth0]"),
        ("127.0.0.1", "127.0.0.1"),
        ("viewer.hospital", "viewer.hospital"),
        ("[::1]", "[::1]"),
        ("", ""),
    ],
)
def test_ipv6_addresses_have_brackets(host: str, expected: str) -> None:
    assert url_host(host) == expected
    assert urlsplit(f"http://{url_host(host)}:8000/").port == 8000
