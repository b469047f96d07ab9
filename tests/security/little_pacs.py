"""A PACS with one study, DICOMweb below ``/dicom-web`` and, as Orthanc has, an API of its own beside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit

from odd_pacs import odd

PATIENT = "ZEBRA^QUENTIN"

_STUDY = {"0020000D": {"vr": "UI", "Value": ["1.2.3"]}, "00100010": {"vr": "PN", "Value": [{"Alphabetic": PATIENT}]}}

_ANSWERS: dict[str, object] = {
    "GET /dicom-web/studies": [_STUDY],
    "GET /dicom-web/series": [],
    "GET /dicom-web/servers": ["another-hospital"],
    "GET /system": {"ApiVersion": 20, "DicomAet": "ORTHANC", "Name": "little"},
    "POST /tools/find": ["b6c9d2f1-5a4e3b2c-1d0f9e8d-7c6b5a49-38271605"],
}


class _Handler(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        said = _ANSWERS.get(f"{self.command} {urlsplit(self.path).path}")
        content = json.dumps(said).encode()
        self.send_response(404 if said is None else 200)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _answer  # noqa: N815 (as the library names them)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def little_pacs() -> Iterator[str]:
    """Run it on this machine; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), odd(_Handler))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
