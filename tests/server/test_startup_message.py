"""What the operator reads when the server has started."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from baps.server import startup_message
from baps.server.startup_message import address, announce, answers, server_lines


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_nothing_is_said_before_it_answers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tried, said = threading.Event(), threading.Event()

    def ask(*where: Any) -> bool:
        found = answers(*where)
        if not found:
            tried.set()
        return found

    def lines() -> list[str]:
        said.set()
        return ["served"]

    monkeypatch.setattr(startup_message, "answers", ask)
    server = HTTPServer(("127.0.0.1", 0), Page, bind_and_activate=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        announce("127.0.0.1", port, "/", lines)
        assert tried.wait(30)
        assert not said.is_set()
    server.server_address = ("127.0.0.1", port)
    server.allow_reuse_address = True
    server.server_bind()
    server.server_activate()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert said.wait(30)
    finally:
        server.shutdown()
        server.server_close()


def test_an_error_is_no_answer() -> None:
    server = HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_address[1]
    try:
        assert answers("0.0.0.0", port, "/")  # noqa: S104
        assert not answers("127.0.0.1", port, "/absent")
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
def test_the_address(host: str, shown: str) -> None:
    assert address(host, 8000, "/baps") == shown


def test_what_is_said(tmp_path: Path) -> None:
    app: Any = SimpleNamespace(studies=str(tmp_path), remote=False, loaded=True)
    said = "\n".join(server_lines("127.0.0.1", 8000, "", app))
    assert f"Serving {tmp_path}" in said
    assert "http://127.0.0.1:8000/" in said
    assert "OHIF" not in said
    assert "loaded" not in said
    (tmp_path / "masks").mkdir()
    for place in (tmp_path, tmp_path / "masks"):
        (place / "a.png").touch()
    app.loaded = False
    said = "\n".join(server_lines("127.0.0.1", 8000, "/baps", app))
    assert "still loading" in said
    assert "/baps/" in said
    assert "1 files in" in said
    app = SimpleNamespace(studies="http://pacs/dicom-web", remote=True, loaded=True)
    assert "http://127.0.0.1:8000/ohif/" in "\n".join(server_lines("127.0.0.1", 8000, "", app))
