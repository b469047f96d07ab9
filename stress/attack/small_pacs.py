"""A minimal PACS with one study: DICOMweb below ``/dicom-web`` and, like Orthanc, an API of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

from stress.attack.odd_pacs import with_odd_study

PATIENT, PATIENT_ID = "ZEBRA^QUENTIN", "Z1"
STUDY, SERIES, INSTANCE = "1.2.3", "1.2.3.1", "1.2.3.1.1"

RECEIVED: list[bytes] = []
"""Bodies of the requests to store objects, all of which are accepted."""

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

_REPLIES: dict[str, object] = {
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


def _values(dataset: dict[str, dict[str, object]]) -> set[str]:
    return {str(value) for one in dataset.values() for value in one["Value"]}  # type: ignore[attr-defined]


class _Handler(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        body, address = self.rfile.read(int(self.headers.get("Content-Length") or 0)), urlsplit(self.path)
        answer = _REPLIES.get(f"{self.command} {address.path}")
        if answer is not None and self.command == "POST" and address.path.endswith("/studies"):
            RECEIVED.append(body)
        if isinstance(answer, list) and self.command == "GET":  # A query for a UID that is not there matches nothing.
            uids = {value for values in parse_qs(address.query).values() for value in values if value[:1] == "1"}
            answer = [one for one in answer if not isinstance(one, dict) or uids <= _values(one)]
        content = json.dumps(answer).encode()
        self.send_response(404 if answer is None else 200)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _answer  # noqa: N815 (names of http.server)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running_pacs() -> Iterator[str]:
    """Run the PACS on this machine.

    Yields:
        Its address.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), with_odd_study(_Handler))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
