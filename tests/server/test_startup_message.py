from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from baps.server import startup_message
from baps.server.startup_message import address, announce, is_responding, server_lines


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_lines_are_printed_when_the_server_responds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, printed = threading.Event(), threading.Event()

    def try_once(*where: Any) -> bool:
        responding = is_responding(*where)
        if not responding:
            tried.set()
        return responding

    def lines() -> list[str]:
        printed.set()
        return ["served"]

    monkeypatch.setattr(startup_message, "is_responding", try_once)
    server = HTTPServer(("127.0.0.1", 0), Page, bind_and_activate=False)
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        announce("127.0.0.1", port, "/", lines)
        assert tried.wait(30)
        assert not printed.is_set()
    server.server_address = ("127.0.0.1", port)
    server.allow_reuse_address = True
    server.server_bind()
    server.server_activate()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert printed.wait(30)
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_error_is_not_a_response() -> None:
    server = HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_address[1]
    try:
        assert is_responding("0.0.0.0", port, "/")  # noqa: S104
        assert not is_responding("127.0.0.1", port, "/absent")
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000/baps/"),
        ("localhost", "http://localhost:8000/baps/"),
        ("::1", "http://[::1]:8000/baps/"),
        ("0.0.0.0", f"http://{socket.gethostname()}:8000/baps/"),  # noqa: S104
        ("", f"http://{socket.gethostname()}:8000/baps/"),
    ],
)
def test_address(host: str, shown: str) -> None:
    assert address(host, 8000, "/baps") == shown


def test_lines(tmp_path: Path) -> None:
    app: Any = SimpleNamespace(studies=str(tmp_path), remote=False, loaded=True)
    text = "\n".join(server_lines("127.0.0.1", 8000, "", app))
    assert f"Serving {tmp_path}" in text
    assert "http://127.0.0.1:8000/" in text
    assert "OHIF" not in text
    assert "loaded" not in text
    (tmp_path / "masks").mkdir()
    for place in (tmp_path, tmp_path / "masks"):
        (place / "a.png").touch()
    app.loaded = False
    text = "\n".join(server_lines("127.0.0.1", 8000, "/baps", app))
    assert "still loading" in text
    assert "/baps/" in text
    assert "1 files in" in text
    app = SimpleNamespace(studies="http://pacs/dicom-web", remote=True, loaded=True)
    assert "http://127.0.0.1:8000/ohif/" in "\n".join(server_lines("127.0.0.1", 8000, "", app))
