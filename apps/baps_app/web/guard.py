"""What is refused before anything else sees it."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from baps.errors import InputError
from web.names import checked_name

_NAMED = ("image", "id", "label", "tag", "session_id")

_ALLOWED = re.compile(
    r"(GET|HEAD) /($|info/?$|openapi\.json$|docs$|favicon\.ico$|static/|ohif|datastore/|train/|session/|progress/)"
    r"|(GET|HEAD) /(proxy/dicom/|auth/)"
    r"|POST /(infer/[^/]+$|activelearning/|train/|proxy/dicom/)"
    r"|PUT /(datastore/(image|label)?$|session/)"
    r"|DELETE /(train/|session/|progress/)"
)
"""What the viewers ask for. The host has more, which deletes, reads any path, or replaces what is served."""


class Guard:
    """Refuses, before anything else sees it, what no viewer asks for."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(scope)):
            await refusal(scope, receive, send)
            return
        await self.app(scope, receive, send)

    @staticmethod
    def _refusal(scope: Scope) -> JSONResponse | None:
        method, path = scope["method"], scope["path"]
        raw = scope.get("raw_path", path.encode()).decode("latin-1")
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        origin = headers.get("origin", "")
        if origin and origin.split("://")[-1] != headers.get("host", ""):
            return JSONResponse({"detail": "Requests from pages of other origins are refused."}, 403)
        decoded = unquote(unquote(raw))
        if ".." in decoded.split("/") or "\\" in decoded or "%2f" in raw.lower():
            return JSONResponse({"detail": "The path of the request leads outside what is served."}, 400)
        if method != "OPTIONS" and not _ALLOWED.match(f"{method} {path}"):
            return JSONResponse({"detail": f"{method} {path} is not served here; no viewer asks for it."}, 403)
        if path.startswith("/session") and query.get("uncompress", "").lower() not in ("", "false", "0"):
            return JSONResponse({"detail": "Archives are not unpacked; send one image file."}, 400)
        try:
            for name in _NAMED:
                if query.get(name):
                    checked_name(query[name], name)
        except InputError as error:
            return JSONResponse({"detail": str(error)}, 400)
        return None
