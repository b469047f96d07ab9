"""ASGI middleware that adds security headers to every response.

A response that sets a header with a default keeps its own value: pages have their own Content-Security-Policy, and
browsers may cache the files of OHIF, which hold no patient data.
"""

from __future__ import annotations

from types import MappingProxyType

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STRICTEST_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""The Content-Security-Policy of responses that are not pages: in a browser they load, run and send nothing."""

DEFAULTS = MappingProxyType({"Content-Security-Policy": STRICTEST_POLICY, "Cache-Control": "no-store"})
"""Headers of responses that do not set them."""

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
"""Headers of all responses."""

RAW = b"".join(f"{name}: {value}\r\n".encode() for name, value in {**DEFAULTS, **ALWAYS}.items())
"""All headers as bytes, for responses that are sent before a request reaches the application."""


class SecurityHeaders:
    """Adds the headers to every response.

    Args:
        app: The application behind it, with Starlette's own middleware, which answers errors.
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
