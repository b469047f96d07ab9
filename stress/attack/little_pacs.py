"""A PACS with one study, DICOMweb below ``/dicom-web`` and, as Orthanc has, an API of its own beside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

from stress.attack.odd_pacs import odd

PATIENT, PATIENT_ID = "ZEBRA^QUENTIN", "Z1"
STUDY, SERIES, INSTANCE = "1.2.3", "1.2.3.1", "1.2.3.1.1"

RECEIVED: list[bytes] = []
"""Bodies of the requests to store objects, which it takes all."""

_STUDY = {
    "0020000D": {"vr": "UI", "Value": [STUDY]},
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": PATIENT}]},
    "00100020": {"vr": "LO", "Value": [PATIENT_ID]},
}
_SERIES = {
    **_STUDY,
    "00080060": {"vr": "CS", "Value": ["CT"]},
    "0020000E": {"vr": "UI", "Value": [SERIES]},
    "00201209": {"vr": "IS", "Value": [1]},
}
_INSTANCE = {**_SERIES, "00080018": {"vr": "UI", "Value": [INSTANCE]}}

_ANSWERS: dict[str, object] = {
    "GET /dicom-web/studies": [_STUDY],
    "GET /dicom-web/series": [_SERIES],
    f"GET /dicom-web/studies/{STUDY}/series": [_SERIES],
    "GET /dicom-web/instances": [_INSTANCE],
    f"GET /dicom-web/studies/{STUDY}/instances": [_INSTANCE],
    f"GET /dicom-web/studies/{STUDY}/series/{SERIES}/instances": [_INSTANCE],
    f"GET /dicom-web/studies/{STUDY}/series/{SERIES}/metadata": [_INSTANCE],
    "POST /dicom-web/studies": {},
    "GET /dicom-web/servers": ["another-hospital"],
    "GET /system": {"ApiVersion": 20, "DicomAet": "ORTHANC", "Name": "little"},
    "POST /tools/find": ["b6c9d2f1-5a4e3b2c-1d0f9e8d-7c6b5a49-38271605"],
}


def _values(described: dict[str, dict[str, object]]) -> set[str]:
    return {str(value) for one in described.values() for value in one["Value"]}  # type: ignore[attr-defined]


class _Handler(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        body, address = self.rfile.read(int(self.headers.get("Content-Length") or 0)), urlsplit(self.path)
        said = _ANSWERS.get(f"{self.command} {address.path}")
        if said is not None and self.command == "POST" and address.path.endswith("/studies"):
            RECEIVED.append(body)
        if isinstance(said, list) and self.command == "GET":  # Asked for one that it does not have, it has none.
            wanted = {value for values in parse_qs(address.query).values() for value in values if value[:1] == "1"}
            said = [one for one in said if not isinstance(one, dict) or wanted <= _values(one)]
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
