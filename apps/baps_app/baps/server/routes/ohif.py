"""Routes for the OHIF of MONAI Label, changed to work below a root path and to load nothing from other hosts."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi import Request
from fastapi.responses import Response
from monailabel.endpoints import ohif as monailabel_ohif

from baps.errors import NotFoundError
from baps.server.middleware.root_path import root_path
from baps.server.routes.pages import has_pacs, no_ohif_page

_EXTERNAL_FILES = {"google.js", "init-service-worker.js", "silent-refresh.html", "sw.js"}
"""Files for logins at Google and for a cache in the browser. They load scripts from other hosts; OHIF works without."""

_FONTS = re.compile(rb"<link [^>]*https://fonts\.[^>]*>|@import url\(https://fonts\.[^)]*\);")
"""Fonts of Google. The browser uses those of the system instead."""

_SERVICE_WORKER = re.compile(rb'<script [^>]*init-service-worker\.js"></script>')

_INLINE = re.compile(rb"<script>(.*?)</script>", re.DOTALL)

_REPLACED = {
    "'Orthanc Server'": "'PACS'",
    "'Orthanc'": "'PACS'",
    "dicomUploadEnabled: true": "dicomUploadEnabled: false",
    "supportsReject: true": "supportsReject: false",
}
"""Replacements in OHIF's configuration: names that it shows, and features that this server does not have."""

_SCRIPT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of a script. It applies if a worker runs the script."""

_CACHED = "private, max-age=3600"
"""Cache-Control of the files of OHIF, which contain nothing about patients."""


def ohif_file(request: Request, path: str) -> Response:
    """Send a file of OHIF, or its page for other paths. Without a PACS, send a page that names the viewer to use.

    Raises:
        NotFoundError: If the file would load scripts from another host.
    """
    if path in _EXTERNAL_FILES:
        raise NotFoundError("This file of OHIF loads scripts from another host; it is not served.")
    file = monailabel_ohif.get_ohif(path)
    if not Path(file.path).is_file():
        file = monailabel_ohif.get_ohif("")
    kind, root = Path(file.path).suffix, root_path(request.scope)
    if kind == ".html" and not has_pacs():
        return no_ohif_page(request)
    headers = {"Cache-Control": _CACHED} | ({"Content-Security-Policy": _SCRIPT_POLICY} if kind == ".js" else {})
    if kind not in (".html", ".css") and not (kind == ".js" and root):
        file.headers.update(headers)
        return file
    content = Path(file.path).read_bytes()
    if kind != ".js":
        content = _SERVICE_WORKER.sub(b"", _FONTS.sub(b"", content))
    content = content.replace(b"/ohif/", f"{root}/ohif/".encode())
    if kind == ".html":  # Not cached: it names the files of the installed version.
        headers = {"Content-Security-Policy": page_policy(content)}
    return Response(content, headers=headers, media_type=file.media_type)


def page_policy(page: bytes) -> str:
    """Make the Content-Security-Policy under which OHIF works.

    Scripts come from this server, except for those in the page, whose hashes are listed. Two of OHIF's libraries
    evaluate text as code ('unsafe-eval'): ndarray, which reads segmentations, and emscripten, which decodes images in
    workers. Scripts add styles ('unsafe-inline') and images (blob:) to the page.

    Args:
        page: The HTML of the page.

    Returns:
        The policy.
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
    """Send OHIF's configuration, with an extension that fixes its export.

    The name Orthanc is replaced, because any PACS works. Users upload images to the PACS, not through this server.
    """
    root = root_path(request.scope)
    configuration = Path(monailabel_ohif.get_ohif("app-config.js").path).read_text()
    for old, new in _REPLACED.items():
        configuration = configuration.replace(old, new)
    for address in ("/ohif/", "/proxy/dicom/"):
        configuration = configuration.replace(f"'{address}", f"'{root}{address}")
    extension = (Path(__file__).parents[1] / "static" / "ohif-extension.js").read_text()
    return Response(f"{configuration}\n{extension}", media_type="text/javascript")
