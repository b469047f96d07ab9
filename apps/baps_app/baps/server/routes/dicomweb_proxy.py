"""Route that forwards OHIF's requests to the PACS."""

from __future__ import annotations

import os
import re
from typing import BinaryIO

from fastapi import Request
from fastapi.responses import Response
from monailabel.interfaces.utils.app import app_instance

from baps.errors import InputError, NotFoundError
from baps.server.middleware.bodies import BODY
from baps.server.middleware.root_path import external_url
from baps.server.request_context import context_of
from baps.server.routes.dicomweb_responses import convert_response
from baps.server.routes.infer import NOTES, notes_header

_DICOMWEB = {
    "GET": re.compile(r"((wado|qido|stow)/)?(studies|series|instances)(/[\w.,:-]+)*/?"),
    "POST": re.compile(r"((wado|stow)/)?studies(/[\d.]+)?/?"),
}
"""Paths that are forwarded to the PACS: to search, fetch and store. A PACS also has paths that delete."""

_MAX_BYTES = 256 << 20
"""Maximum size of a request that stores objects in the PACS."""


def forward_to_pacs(request: Request, path: str) -> Response:
    """Forward a DICOMweb request to the PACS, to search, fetch or store.

    Raises:
        NotFoundError: If the server serves a folder of studies.
        InputError: If it is none of the requests that OHIF sends, or too large.
        BapsError: If the PACS does not respond.
    """
    datastore = app_instance().datastore()
    if not hasattr(datastore, "forward"):
        raise NotFoundError("This server serves a folder of studies; there is no PACS behind it.")
    if not _DICOMWEB[request.method].fullmatch(path):
        raise InputError("OHIF sends no such request to a PACS, so it is not forwarded.")
    body: BinaryIO | None = request.scope.get(BODY)  # On disk.
    if body and body.seek(0, os.SEEK_END) > _MAX_BYTES:
        raise InputError(f"A request to the PACS may have at most {_MAX_BYTES >> 20} MB. Store fewer objects at once.")
    if body:
        body.seek(0)
    kind, _, rest = path.partition("/")
    kind, rest = (kind, rest) if kind in ("wado", "qido", "stow") else ("", path)
    kind = "wado" if rest.endswith("metadata") else kind  # OHIF requests metadata where it searches.
    query = f"?{request.url.query}" if request.url.query else ""
    headers = {name: value for name in ("accept", "content-type") if (value := request.headers.get(name))}
    notes: list[str] = []
    if request.method == "POST":
        context = context_of(request)
        content = body.read() if body else b""
        response, notes = datastore.store_objects(
            kind, rest + query, headers, content, context.name, context.confirms, context.images.extend
        )
    else:
        response = datastore.forward(request.method, kind, rest + query, headers, None)
    added = {}
    if notes:  # The status stays that of the PACS, because it has stored the objects.
        added[NOTES] = notes_header(notes)
        added["Warning"] = '299 - "The label was stored, but is not used: see X-BAPS-Notes"'
    return convert_response(response, f"{external_url(request)}/proxy/dicom/wado", added)
