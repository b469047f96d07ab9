"""ASGI middleware for the path that a proxy serves this server below, as in https://hospital/baps/.

A proxy may remove the path (nginx: ``proxy_pass http://127.0.0.1:8000/;``) or leave it; both work.
Behind ``RootPath`` every request looks the same: as ASGI demands, ``path`` begins with the root path. So the guard and
the routes see the same path, and redirects and links lead back through the proxy.
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
        server_root = scope.get("root_path", "")
        root = parse_root_path(server_root) or self._root
        path = scope["path"].removeprefix(server_root)  # Uvicorn has put it in front.
        if path == root or path.startswith(f"{root}/"):
            path = path[len(root) :]
        path = path or "/"
        if scope["type"] == "http" and not path.startswith("/"):  # ``OPTIONS *``, which has no path below the root.
            await JSONResponse({"detail": "The path of a request begins with a slash."}, 400)(scope, receive, send)
            return
        await self.app({**scope, "root_path": root, "path": root + path}, receive, send)


def root_path(scope: Mapping[str, Any]) -> str:
    """Return the root path of a request, such as ``/baps``, or "".

    Args:
        scope: ASGI scope of the request.
    """
    return str(scope.get("root_path", ""))


def path_below(scope: Mapping[str, Any]) -> str:
    """Return the path of a request below the root path, which the routes match.

    Args:
        scope: ASGI scope of the request, behind ``RootPath``.
    """
    return str(scope["path"]).removeprefix(root_path(scope))


def external_url(request: Request) -> str:
    """Return this server's address as the client knows it, with the root path.

    Args:
        request: Request of the client. If its host is invalid, the address is the root path alone.
    """
    host = request.headers.get("host", "")
    origin = f"{request.url.scheme}://{host}" if re.fullmatch(r"[\w.:\[\]-]+", host) else ""
    return origin + root_path(request.scope)
