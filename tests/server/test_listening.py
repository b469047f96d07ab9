from __future__ import annotations

import pytest

from baps.errors import InputError
from baps.server.listening import parse_bind_host, warn_without_proxy
from baps.site.server_command import check_listening

MONAI = ["monailabel/main.py", "start_server", "--app", "a", "--studies", "s"]


@pytest.mark.parametrize(
    ("words", "host"),
    [
        (MONAI, "0.0.0.0"),  # noqa: S104
        ([*MONAI, "--host", "127.0.0.1", "--conf", "labels", "spleen"], "127.0.0.1"),
        ([*MONAI, "-i", "10.0.0.1"], "10.0.0.1"),
        ([*MONAI, "--host=::"], "::"),
        (["uvicorn", "baps.server.asgi:app"], "127.0.0.1"),
        (["uvicorn", "baps.server.asgi:app", "--host", "0.0.0.0"], "0.0.0.0"),  # noqa: S104
    ],
)
def test_command_line(words: list[str], host: str) -> None:
    assert parse_bind_host(words) == host


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "10.1.2.3", "no.such.host.invalid"])  # noqa: S104
def test_other_machines_need_users(host: str) -> None:
    check_listening(host, requires_login=True)
    with pytest.raises(InputError, match="baps users add NAME"):
        check_listening(host, requires_login=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "localhost", "::1"])
def test_this_machine_needs_no_users(host: str) -> None:
    check_listening(host, requires_login=False)


def test_warning_without_a_proxy(caplog: pytest.LogCaptureFixture) -> None:
    warn_without_proxy("127.0.0.1")
    assert not caplog.messages
    warn_without_proxy("0.0.0.0")  # noqa: S104
    (reply,) = caplog.messages
    assert "deploy/nginx.conf" in reply
