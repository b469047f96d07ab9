"""ASGI middleware: headers that tell browsers what no answer of this server may do, on every answer.

An answer that says something else of itself keeps it: the pages their Content-Security-Policy, and the files of OHIF,
which hold no patient's data, how long a browser may keep them.
"""

from __future__ import annotations

from types import MappingProxyType

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""The Content-Security-Policy of an answer that is no page: opened in a browser, it loads, runs and sends nothing."""

DEFAULTS = MappingProxyType({"Content-Security-Policy": NOTHING, "Cache-Control": "no-store"})
"""Headers of answers that do not set them."""

ALWAYS = MappingProxyType(
    {
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        # With no-referrer, browsers would send the server's own forms with ``Origin: null``.
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
    }
)
"""Headers of all answers."""

RAW = b"".join(f"{name}: {value}\r\n".encode() for name, value in {**DEFAULTS, **ALWAYS}.items())
"""All of them as bytes, for what is answered before there is a request for the application."""


class SecurityHeaders:
    """Adds the headers to every answer.

    Args:
        app: behind it. It should be all of the application, for errors are answered by its outermost part.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(scope=message)
                for name, value in DEFAULTS.items():
                    headers.setdefault(name, value)
                headers.update(ALWAYS)
            await send(message)

        await self.app(scope, receive, with_headers)
