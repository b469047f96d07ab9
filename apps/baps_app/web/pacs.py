"""OHIF's way to the PACS."""

from __future__ import annotations

import re
from urllib.parse import quote

from fastapi import Depends, Request
from fastapi.responses import Response
from monailabel.interfaces.utils.app import app_instance

from baps.collected import notes
from baps.errors import InputError, NotFoundError
from lib.pacs.exported import exported_objects
from lib.pacs.stored_segments import labelled_series
from web.asking import asked
from web.inference import NOTES
from web.pacs_answers import answer_for_viewer
from web.root_path import own_address

_DICOMWEB = {
    "GET": re.compile(r"((wado|qido|stow)/)?(studies|series|instances)(/[\w.,:-]+)*/?"),
    "POST": re.compile(r"((wado|stow)/)?studies(/[\d.]+)?/?"),
}
"""What is passed on to the PACS: to search, to fetch, and to store. PACSs have more there, which deletes."""

_MOST_BYTES = 512 << 20
"""That a viewer may store in the PACS at once."""


async def _body(request: Request) -> bytes:
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > _MOST_BYTES:
            raise InputError(f"More than {_MOST_BYTES >> 20} MB cannot be sent through this server.")
    return bytes(content)


def forward_to_pacs(request: Request, path: str, body: bytes = Depends(_body)) -> Response:
    """OHIF's way to the PACS; the host's own holds up everybody while the PACS works, and drops the query."""
    forward = getattr(app_instance().datastore(), "forward", None)
    if forward is None:
        raise NotFoundError("This server serves a folder of studies; there is no PACS behind it.")
    if not _DICOMWEB[request.method].fullmatch(path):
        raise InputError("That is no request that OHIF makes of a PACS; it is not passed on.")
    kind, _, rest = path.partition("/")
    kind, rest = (kind, rest) if kind in ("wado", "qido", "stow") else ("", path)
    kind = "wado" if rest.endswith("metadata") else kind  # OHIF asks for metadata where it searches.
    query = f"?{request.url.query}" if request.url.query else ""
    headers = {name: value for name in ("accept", "content-type") if (value := request.headers.get(name))}
    if request.method == "POST" and body:
        asked(request).images = _images_of(headers.get("content-type", ""), body)
    with notes.collecting() as said:
        found = forward(request.method, kind, rest + query, headers, body)
    ours = {}
    if said:  # The PACS's own status is passed on: it did store what it says.
        ours[NOTES] = quote(" ".join(said)[:400])
        ours["Warning"] = '299 - "The label was stored, but cannot be read: see X-BAPS-Notes"'
    return answer_for_viewer(found, f"{own_address(request)}/proxy/dicom/wado", ours)


def _images_of(content_type: str, body: bytes) -> list[str]:
    """The series that objects belong to: of a label those that it was drawn on, else their own."""
    images: dict[str, None] = {}
    for found in exported_objects(content_type, body):
        images |= dict.fromkeys(filter(None, labelled_series(found) or (str(found.get("SeriesInstanceUID", "")),)))
    return list(images)
