"""OHIF's way to the PACS."""

from __future__ import annotations

import re
from urllib.parse import quote

from fastapi import Depends, Request
from fastapi.responses import Response, StreamingResponse
from monailabel.interfaces.utils.app import app_instance

from baps.collected import notes
from baps.errors import InputError, NotFoundError
from web.asking import asked
from web.inference import NOTES

_FROM_PACS = ("content-type", "content-length", "content-encoding")
"""Headers of the PACS that a viewer needs."""

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
    datastore = app_instance().datastore()
    if not hasattr(datastore, "forward"):
        raise NotFoundError("This server serves a folder of studies; there is no PACS behind it.")
    if not _DICOMWEB[request.method].fullmatch(path):
        raise InputError("That is no request that OHIF makes of a PACS; it is not passed on.")
    kind, _, rest = path.partition("/")
    kind, rest = (kind, rest) if kind in ("wado", "qido", "stow") else ("", path)
    kind = "wado" if rest.endswith("metadata") else kind  # OHIF asks for metadata where it searches.
    query = f"?{request.url.query}" if request.url.query else ""
    headers = {name: value for name in ("accept", "content-type") if (value := request.headers.get(name))}
    with notes.collecting() as said:
        if request.method == "POST":
            who = asked(request)
            found = datastore.store_objects(kind, rest + query, headers, body, who.name, who.confirms)
        else:
            found = datastore.forward(request.method, kind, rest + query, headers, body)
    passed = {name: value for name in _FROM_PACS if (value := found.headers.get(name))}
    if said:  # The PACS's own status is passed on: it did store what it says.
        passed[NOTES] = quote(" ".join(said)[:400])
        passed["Warning"] = '299 - "The label was stored, but it does not count: see X-BAPS-Notes"'
    return StreamingResponse(found.raw.stream(1 << 16, decode_content=False), found.status_code, passed)
