"""Route that passes OHIF's requests on to the PACS."""

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
from baps.server.request_context import context_of
from baps.server.routes.dicomweb_answers import answer_for_viewer
from baps.server.routes.infer import NOTES, notes_header

_DICOMWEB = {
    "GET": re.compile(r"((wado|qido|stow)/)?(studies|series|instances)(/[\w.,:-]+)*/?"),
    "POST": re.compile(r"((wado|stow)/)?studies(/[\d.]+)?/?"),
}
"""Paths that are passed on to the PACS: to search, fetch and store. A PACS has more, which delete."""

_MAX_BYTES = 256 << 20
"""Maximum size of what a viewer stores in the PACS at once."""


def forward_to_pacs(request: Request, path: str) -> Response:
    """Pass a DICOMweb request on to the PACS, to search, fetch or store.

    Raises:
        NotFoundError: If the server serves a folder of studies.
        InputError: If OHIF sends no such request, or it is too large.
        BapsError: If the PACS does not respond.
    """
    datastore = app_instance().datastore()
    if not hasattr(datastore, "forward"):
        raise NotFoundError("This server serves a folder of studies; there is no PACS behind it.")
    if not _DICOMWEB[request.method].fullmatch(path):
        raise InputError("OHIF sends no such request to a PACS; it is not passed on.")
    body: BinaryIO | None = request.scope.get(BODY)  # On disk.
    if body and body.seek(0, os.SEEK_END) > _MAX_BYTES:
        raise InputError(f"More than {_MAX_BYTES >> 20} MB cannot be sent through this server.")
    if body:
        body.seek(0)
    kind, _, rest = path.partition("/")
    kind, rest = (kind, rest) if kind in ("wado", "qido", "stow") else ("", path)
    kind = "wado" if rest.endswith("metadata") else kind  # OHIF requests metadata where it searches.
    query = f"?{request.url.query}" if request.url.query else ""
    headers = {name: value for name in ("accept", "content-type") if (value := request.headers.get(name))}
    notes: list[str] = []
    if request.method == "POST":
        who = context_of(request)
        content = body.read() if body else b""
        found, notes = datastore.store_objects(
            kind, rest + query, headers, content, who.name, who.confirms, who.images.extend
        )
    else:
        found = datastore.forward(request.method, kind, rest + query, headers, None)
    ours = {}
    if notes:  # The status of the PACS is passed on: it has stored the objects.
        ours[NOTES] = notes_header(notes)
        ours["Warning"] = '299 - "The label was stored, but it does not count: see X-BAPS-Notes"'
    return answer_for_viewer(found, f"{own_address(request)}/proxy/dicom/wado", ours)
