"""OHIF as MONAI Label brings it, made to work below a root path and to load nothing from other hosts."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi import Request
from fastapi.responses import Response
from monailabel.endpoints import ohif as host_ohif

from baps.errors import NotFoundError
from web.root_path import root_path

_OF_OTHER_HOSTS = {"google.js", "init-service-worker.js", "silent-refresh.html", "sw.js"}
"""Files for logins at Google and for a cache in the browser, which load scripts from elsewhere; OHIF works without."""

_FONTS = re.compile(rb"<link [^>]*https://fonts\.[^>]*>|@import url\(https://fonts\.[^)]*\);")
"""Google's fonts; the browser shows the system's instead."""

_SERVICE_WORKER = re.compile(rb'<script [^>]*init-service-worker\.js"></script>')


def ohif_file(request: Request, path: str) -> Response:
    """A file of OHIF; its page for all that is none. The host's stumbles over folders.

    Raises:
        NotFoundError: if it is a file that would load others from another host.
    """
    if path in _OF_OTHER_HOSTS:
        raise NotFoundError("This file of OHIF loads scripts from another host; it is not served.")
    found = host_ohif.get_ohif(path)
    if not Path(found.path).is_file():
        found = host_ohif.get_ohif("")
    kind, root = Path(found.path).suffix, root_path(request.scope)
    if kind not in (".html", ".css") and not (kind == ".js" and root):
        return found
    content = Path(found.path).read_bytes()
    if kind != ".js":
        content = _SERVICE_WORKER.sub(b"", _FONTS.sub(b"", content))
    return Response(content.replace(b"/ohif/", f"{root}/ohif/".encode()), media_type=found.media_type)


def configure_ohif(request: Request) -> Response:
    """OHIF's configuration, and an extension of ours that mends its export."""
    root = root_path(request.scope)
    theirs = Path(host_ohif.get_ohif("app-config.js").path).read_text()
    for address in ("/ohif/", "/proxy/dicom/"):
        theirs = theirs.replace(f"'{address}", f"'{root}{address}")
    ours = Path(__file__).with_name("ohif-extension.js").read_text()
    return Response(f"{theirs}\n{ours}", media_type="text/javascript")
