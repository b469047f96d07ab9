from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from baps.demo.server import free_port, running
from baps.errors import BapsError
from demo import loopback, orthanc
from tests.support.marks import starts

_WIDE = """
import http.server, sys
http.server.HTTPServer(("0.0.0.0", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
needs_namespaces = pytest.mark.skipif(
    not loopback.is_possible(), reason="This system does not let users create namespaces."
)


def _is_reachable(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), 5).close()
    except OSError:
        return False
    return True


@pytest.fixture
@starts("server")
def wide(tmp_path: Path) -> Iterator[tuple[int, psutil.Process]]:
    port = free_port()
    command = loopback.isolated_command(port, [sys.executable, "-c", _WIDE, str(port)])
    with running(command, os.environ, f"http://127.0.0.1:{port}/", tmp_path / "log") as process:
        yield port, process


@needs_namespaces
def test_it_is_reachable_on_loopback_only(wide: tuple[int, psutil.Process]) -> None:
    port, _ = wide
    assert requests.get(f"http://127.0.0.1:{port}/Makefile", timeout=10).content == Path("Makefile").read_bytes()
    assert not _is_reachable("127.0.0.2", port)  # A socket on all addresses would accept it.


@needs_namespaces
def test_the_server_stops_with_its_parent(wide: tuple[int, psutil.Process]) -> None:
    port, process = wide
    (inside,) = process.children(recursive=True)
    process.kill()
    inside.wait(10)
    assert not _is_reachable("127.0.0.1", port)


def test_without_namespaces_a_reachable_server_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "Orthanc"
    fake.write_text(
        f"#!{sys.executable}\nimport json, sys\nport = json.load(open(sys.argv[1]))['HttpPort']\n"
        "import http.server as s\n"
        "class H(s.BaseHTTPRequestHandler):\n def do_GET(self): self.send_response(200); self.end_headers()\n"
        "s.HTTPServer(('0.0.0.0', port), H).serve_forever()\n"
    )
    fake.chmod(0o700)
    monkeypatch.setattr(orthanc, "PROGRAM", str(fake))
    monkeypatch.setattr(loopback, "is_possible", lambda: False)
    with (
        pytest.raises(BapsError, match=r"listens on 0\.0\.0\.0 port .*It was stopped"),
        orthanc.running_orthanc(tmp_path),
    ):
        pytest.fail("Other machines could reach it.")
    with orthanc.running_orthanc(tmp_path, reachable=True) as address:
        port = int(address.rpartition(":")[2])
        assert _is_reachable("127.0.0.2", port)
    assert not _is_reachable("127.0.0.1", port)


@pytest.mark.slow
@pytest.mark.skipif(bool(orthanc.missing()), reason=orthanc.missing())
@needs_namespaces
def test_orthanc_is_not_reachable_by_other_machines(tmp_path: Path) -> None:
    others = psutil.Process().children(recursive=True)  # Another test's Orthanc may run, open to others.
    with orthanc.running_orthanc(tmp_path) as address:
        own = [one for one in psutil.Process().children(recursive=True) if one not in others]
        listening = {one.laddr for each in own for one in each.connections("tcp") if one.status == psutil.CONN_LISTEN}
        assert {ip for ip, _ in listening} <= {"127.0.0.1", "::1"}
        assert not _is_reachable("127.0.0.2", int(address.rpartition(":")[2]))
