"""OHIF's way to the PACS."""

from __future__ import annotations

import os
import re
from typing import BinaryIO

from fastapi import Request
from fastapi.responses import Response
from monailabel.interfaces.utils.app import app_instance

from baps.errors import InputError, NotFoundError
from baps.server.middleware.bodies import BODY
from baps.server.middleware.root_path import own_address
from baps.server.request_context import asked
from baps.server.routes.dicomweb_answers import answer_for_viewer
from baps.server.routes.infer import NOTES, notes_header

_DICOMWEB = {
    "GET": re.compile(r"((wado|qido|stow)/)?(studies|series|instances)(/[\w.,:-]+)*/?"),
    "POST": re.compile(r"((wado|stow)/)?studies(/[\d.]+)?/?"),
}
"""What is passed on to the PACS: to search, to fetch, and to store. PACSs have more there, which deletes."""

_MOST_BYTES = 256 << 20
"""That a viewer may store in the PACS at once."""


def forward_to_pacs(request: Request, path: str) -> Response:
    """OHIF's way to the PACS; the host's own holds up everybody while the PACS works, and drops the query."""
    datastore = app_instance().datastore()
    if not hasattr(datastore, "forward"):
        raise NotFoundError("This server serves a folder of studies; there is no PACS behind it.")
    if not _DICOMWEB[request.method].fullmatch(path):
        raise InputError("That is no request that OHIF makes of a PACS; it is not passed on.")
    body: BinaryIO | None = request.scope.get(BODY)  # On disk, where it stays.
    if body and body.seek(0, os.SEEK_END) > _MOST_BYTES:
        raise InputError(f"More than {_MOST_BYTES >> 20} MB cannot be sent through this server.")
    if body:
        body.seek(0)
    kind, _, rest = path.partition("/")
    kind, rest = (kind, rest) if kind in ("wado", "qido", "stow") else ("", path)
    kind = "wado" if rest.endswith("metadata") else kind  # OHIF asks for metadata where it searches.
    query = f"?{request.url.query}" if request.url.query else ""
    headers = {name: value for name in ("accept", "content-type") if (value := request.headers.get(name))}
    notes: list[str] = []
    if request.method == "POST":
        who = asked(request)
        content = body.read() if body else b""
        found, notes = datastore.store_objects(
            kind, rest + query, headers, content, who.name, who.confirms, who.images.extend
        )
    else:
        found = datastore.forward(request.method, kind, rest + query, headers, None)
    ours = {}
    if notes:  # The PACS's own status is passed on: it did store what it says.
        ours[NOTES] = notes_header(notes)
        ours["Warning"] = '299 - "The label was stored, but it does not count: see X-BAPS-Notes"'
    return answer_for_viewer(found, f"{own_address(request)}/proxy/dicom/wado", ours)
