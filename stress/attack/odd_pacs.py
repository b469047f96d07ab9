"""What a PACS may answer of one study: addresses of its own network, pages with scripts, and ways to its own API."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

STUDY = "6.6.6"
SCRIPT = b"<script>document.title = 'taken'</script>"

_XML = """<NativeDicomModel><DicomAttribute tag="00081190" vr="UR"><Value number="1">{0}</Value></DicomAttribute>
<DicomAttribute tag="7FE00010" vr="OW"><BulkData URI="{0}/bulk/7fe00010"/></DicomAttribute></NativeDicomModel>"""


def odd(handler: type[BaseHTTPRequestHandler]) -> type[BaseHTTPRequestHandler]:
    """The handler of a PACS, with that study."""

    class Odd(handler):  # type: ignore[valid-type, misc]
        def do_GET(self) -> None:  # noqa: N802 (as the library names it)
            if not self._answers():
                super().do_GET()

        def do_POST(self) -> None:  # noqa: N802
            if not self._answers():
                super().do_POST()

        def _answers(self) -> bool:
            before, found, name = urlsplit(self.path).path.partition(f"/dicom-web/studies/{STUDY}")
            if not found or before:
                return False
            here = f"http://{self.headers['Host']}/dicom-web/studies/{STUDY}"
            described = {
                "00081190": {"vr": "UR", "Value": [here]},
                "7FE00010": {"vr": "OW", "BulkDataURI": f"{here}/bulk"},
            }
            text, part = json.dumps([described]).encode(), f"--b\r\nContent-Location: {here}\r\n\r\n".encode()
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

    return Odd
