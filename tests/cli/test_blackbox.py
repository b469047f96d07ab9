from __future__ import annotations

import re
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from baps.blackbox import RemoteSettings, load_black_box
from baps.cli import app
from baps.demo.server import free_port
from baps.errors import BapsError, InputError
from tests.support.hosts import BUNDLED, hosted


def _serve(*words: str) -> None:
    CliRunner().invoke(app, ["blackbox", "serve", *words], catch_exceptions=False)


@pytest.mark.server
def test_it_listens_on_this_machine_only_and_stops_on_a_signal(tmp_path: Path) -> None:
    with hosted(tmp_path, (*BUNDLED, "--name", "mine"), "mine") as host:
        assert host.process
        for address in host.addresses.values():
            load_black_box("remote", remote=RemoteSettings(address))
            with pytest.raises(BapsError, match="cannot be reached"):  # by another address of this machine
                load_black_box("remote", remote=RemoteSettings(address.replace("127.0.0.1", "127.0.0.2")))
        output = (tmp_path / "host.log").read_text().splitlines()[0]
        assert all(address in output for address in host.addresses.values())
        host.process.send_signal(signal.SIGTERM)
        host.process.wait(60)
        with pytest.raises(BapsError, match="cannot be reached"):
            load_black_box("remote", remote=RemoteSettings(host.addresses["http"]))


def test_missing_kserve_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kserve", None)
    with pytest.raises(BapsError, match=r"pip install 'baps-monailabel\[hosting\]'"):
        _serve("--port", str(free_port()), "--grpc-port", str(free_port()))


@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
def test_port_in_use(option: str) -> None:
    ports = {"--port": free_port(), "--grpc-port": free_port()}
    with socket.create_server(("127.0.0.1", 0)) as busy:
        ports[option] = busy.getsockname()[1]
        words = [str(word) for pair in ports.items() for word in pair]
        with pytest.raises(InputError, match=f"Port {ports[option]} of 127.0.0.1 cannot be used"):
            _serve(*words)


def test_a_remote_model_is_not_served_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAPS_BLACK_BOX", "remote")
    with pytest.raises(InputError, match="is already served"):
        _serve()


def test_an_ipv6_address_is_printed_in_brackets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from baps.cli import blackbox

    served: list[tuple[object, ...]] = []
    hosting = SimpleNamespace(host=lambda *given: served.append(given))
    monkeypatch.setitem(sys.modules, "baps.blackbox.remote.hosting", hosting)
    blackbox.serve(host="::1", port=free_port(), grpc_port=free_port(), name="mine")
    assert served
    output = capsys.readouterr().out
    assert re.search(r"http://\[::1\]:\d+/mine and grpc://\[::1\]:\d+/mine", output)
