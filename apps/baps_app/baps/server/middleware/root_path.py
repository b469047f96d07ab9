"""ASGI middleware for the path that a proxy serves this server below, as in https://hospital/baps/.

A proxy may remove the path (nginx: ``proxy_pass http://127.0.0.1:8000/;``) or leave it; both work.
Behind ``RootPath`` every request looks the same: ``path`` is the root path and what comes below it, as ASGI has it, so
that the guard and the routes see the same path, and redirects and links lead back through the proxy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from baps.site.settings import parse_root_path


class RootPath:
    """Puts the root path in front of the path of every request, once.

    Args:
        app: The application behind it.
        root: Root path, such as ``/baps``, or "". That of uvicorn (``--root_path``) takes precedence.
    """

    def __init__(self, app: ASGIApp, root: str = "") -> None:
        self.app, self._root = app, root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        given = scope.get("root_path", "")
        root = parse_root_path(given) or self._root
        path = scope["path"].removeprefix(given)  # uvicorn has put it in front.
        if path == root or path.startswith(f"{root}/"):
            path = path[len(root) :]
        path = path or "/"
        if scope["type"] == "http" and not path.startswith("/"):  # ``OPTIONS *``; the path below would be none.
            await JSONResponse({"detail": "The path of a request begins with a slash."}, 400)(scope, receive, send)
            return
        await self.app({**scope, "root_path": root, "path": root + path}, receive, send)


def root_path(scope: Mapping[str, Any]) -> str:
    """Return the root path of a request, such as ``/baps``, or ""."""
    return str(scope.get("root_path", ""))


def path_below(scope: Mapping[str, Any]) -> str:
    """Return the path of a request below the root path, which the routes match."""
    return str(scope["path"]).removeprefix(root_path(scope))


def own_address(request: Request) -> str:
    """Return this server's address as the client knows it, with the root path, but without an invalid host."""
    host = request.headers.get("host", "")
    near = f"{request.url.scheme}://{host}" if re.fullmatch(r"[\w.:\[\]-]+", host) else ""
    return near + root_path(request.scope)
