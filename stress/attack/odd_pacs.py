"""A study for which the PACS gives hostile answers: internal addresses, pages with scripts, and a redirect."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

STUDY = "6.6.6"
SCRIPT = b"<script>document.title = 'taken'</script>"

_XML = """<NativeDicomModel><DicomAttribute tag="00081190" vr="UR"><Value number="1">{0}</Value></DicomAttribute>
<DicomAttribute tag="7FE00010" vr="OW"><BulkData URI="{0}/bulk/7fe00010"/></DicomAttribute></NativeDicomModel>"""


def with_odd_study(handler: type[BaseHTTPRequestHandler]) -> type[BaseHTTPRequestHandler]:
    """Extend the handler of a PACS with the hostile study."""

    class OddHandler(handler):  # type: ignore[valid-type, misc]
        def do_GET(self) -> None:  # noqa: N802 (a name of http.server)
            if not self._answer_odd_study():
                super().do_GET()

        def do_POST(self) -> None:  # noqa: N802
            if not self._answer_odd_study():
                super().do_POST()

        def _answer_odd_study(self) -> bool:
            before, prefix_found, name = urlsplit(self.path).path.partition(f"/dicom-web/studies/{STUDY}")
            if not prefix_found or before:
                return False
            here = f"http://{self.headers['Host']}/dicom-web/studies/{STUDY}"
            dataset = {
                "00081190": {"vr": "UR", "Value": [here]},
                "7FE00010": {"vr": "OW", "BulkDataURI": f"{here}/bulk"},
            }
            text, part = json.dumps([dataset]).encode(), f"--b\r\nContent-Location: {here}\r\n\r\n".encode()
            status, kind, content = {
                "/metadata": (200, "application/dicom+json", text),
                "/series": (200, "application/dicom+xml", _XML.format(here).encode()),
                "/frames/1": (200, "multipart/related; boundary=b", part + bytes(64) + b"\r\n--b--\r\n"),
                "": (200, "application/dicom+json", text),
                "/rendered": (200, "text/html", SCRIPT),
                "/thumbnail": (404, "", SCRIPT),
                "/instances": (302, "", b""),
            }.get(name, (404, "text/html", SCRIPT))
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            if kind:
                self.send_header("Content-Type", kind)
            if status == 302:
                self.send_header("Location", "/system")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            return True

    return OddHandler
