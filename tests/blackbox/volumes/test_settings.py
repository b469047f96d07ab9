from __future__ import annotations

from typing import Any

import pytest

from baps.blackbox.volumes.settings import VolumeRemoteSettings
from baps.errors import InputError


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1527", "http://[::1]:1527", "https://gpu.hospital", "https://gpu.hospital/baps/nn/"]
)
def test_addresses(address: str) -> None:
    assert VolumeRemoteSettings(address, "secret").address == address


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"address": "gpu:1527"}, "is not the address"),
        ({"address": "grpc://gpu:1527"}, "is not the address"),
        ({"address": "http://"}, "is not the address"),
        ({"address": "http://gpu:99999"}, "is not the address"),
        ({"address": "http://gpu?x=1"}, "is not the address"),
        ({"address": "http://me:secret@gpu"}, "which others could read"),
        ({"address": "http://gpu:1527", "token": "secret"}, "not encrypted"),
        ({"token": "two words"}, "letters, digits and punctuation"),
        ({"token": "a\nb"}, "letters, digits and punctuation"),
        ({"token": "schlüssel"}, "letters, digits and punctuation"),
        ({"timeout": 0}, "remote_timeout must be more than 0"),
        ({"retry_seconds": float("inf")}, "remote_retry_seconds 0 or more"),
    ],
)
def test_what_cannot_be_used_gets_a_sentence_without_the_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        VolumeRemoteSettings(**{"address": "http://127.0.0.1:1527", **changes})
    assert "secret" not in str(error.value)


def test_the_key_is_not_printed() -> None:
    assert "secret" not in repr(VolumeRemoteSettings("https://gpu", "secret"))
