"""OHIF as MONAI Label brings it, made to work below a root path and to load nothing from other hosts."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi import Request
from fastapi.responses import Response
from monailabel.endpoints import ohif as host_ohif

from baps.errors import NotFoundError
from baps.server.middleware.root_path import root_path
from baps.server.routes.pages import has_pacs, no_ohif_page

_OF_OTHER_HOSTS = {"google.js", "init-service-worker.js", "silent-refresh.html", "sw.js"}
"""Files for logins at Google and for a cache in the browser, which load scripts from elsewhere; OHIF works without."""

_FONTS = re.compile(rb"<link [^>]*https://fonts\.[^>]*>|@import url\(https://fonts\.[^)]*\);")
"""Google's fonts; the browser shows the system's instead."""

_SERVICE_WORKER = re.compile(rb'<script [^>]*init-service-worker\.js"></script>')

_INLINE = re.compile(rb"<script>(.*?)</script>", re.DOTALL)

_MENDED = {
    "'Orthanc Server'": "'PACS'",
    "'Orthanc'": "'PACS'",
    "dicomUploadEnabled: true": "dicomUploadEnabled: false",
    "supportsReject: true": "supportsReject: false",
}
"""In OHIF's configuration: names that it shows, and what only other PACS can do."""

_WORKER = (
    "default-src 'self'; script-src 'self' 'unsafe-eval'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy of a script, which counts where a worker runs it."""

_KEPT = "private, max-age=3600"
"""How long a browser keeps a file of OHIF, in which there is nothing of patients."""


def ohif_file(request: Request, path: str) -> Response:
    """A file of OHIF; its page for all that is none, or what to do without a PACS. The host's stumbles over folders.

    Raises:
        NotFoundError: if it is a file that would load others from another host.
    """
    if path in _OF_OTHER_HOSTS:
        raise NotFoundError("This file of OHIF loads scripts from another host; it is not served.")
    found = host_ohif.get_ohif(path)
    if not Path(found.path).is_file():
        found = host_ohif.get_ohif("")
    kind, root = Path(found.path).suffix, root_path(request.scope)
    if kind == ".html" and not has_pacs():
        return no_ohif_page(request)
    headers = {"Cache-Control": _KEPT} | ({"Content-Security-Policy": _WORKER} if kind == ".js" else {})
    if kind not in (".html", ".css") and not (kind == ".js" and root):
        found.headers.update(headers)
        return found
    content = Path(found.path).read_bytes()
    if kind != ".js":
        content = _SERVICE_WORKER.sub(b"", _FONTS.sub(b"", content))
    content = content.replace(b"/ohif/", f"{root}/ohif/".encode())
    if kind == ".html":  # Not kept: it names the files of the version that is installed.
        headers = {"Content-Security-Policy": page_policy(content)}
    return Response(content, headers=headers, media_type=found.media_type)


def page_policy(page: bytes) -> str:
    """Make the Content-Security-Policy under which OHIF works.

    Scripts come from this server, but for those that stand in the page, of which the hashes are named. Two of OHIF's
    libraries make functions of their own text ('unsafe-eval'): that which reads segmentations (ndarray), and in workers
    those which unpack images (emscripten). Styles are written by scripts ('unsafe-inline'), as are images (blob:).

    Args:
        page: its HTML, as it is sent.
    """
    inline = (hashlib.sha256(script.replace(b"\r\n", b"\n")).digest() for script in _INLINE.findall(page))
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in inline)
    return (
        f"default-src 'self'; script-src 'self' {hashes} 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
        "media-src 'self' blob:; object-src 'self' blob:; frame-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    )


def configure_ohif(request: Request) -> Response:
    """OHIF's configuration, and an extension of ours that mends its export.

    The PACS need not be Orthanc; images are sent to it, not through this server.
    """
    root = root_path(request.scope)
    theirs = Path(host_ohif.get_ohif("app-config.js").path).read_text()
    for given, ours in _MENDED.items():
        theirs = theirs.replace(given, ours)
    for address in ("/ohif/", "/proxy/dicom/"):
        theirs = theirs.replace(f"'{address}", f"'{root}{address}")
    extension = (Path(__file__).parents[1] / "static" / "ohif-extension.js").read_text()
    return Response(f"{theirs}\n{extension}", media_type="text/javascript")
