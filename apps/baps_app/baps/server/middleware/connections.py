"""Limits for connections: close those that send incomplete headers or do not read the response.

uvicorn waits without limit for the headers of a request, and for a client to read the response. ``bound_connections``
makes it use ``Connection`` instead of its own class, whichever command started it.
"""

from __future__ import annotations

import json
import resource
from asyncio import TimerHandle, Transport
from collections import Counter, OrderedDict

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from baps.server.middleware.security_headers import RAW

HEADER_SECONDS = 10.0
"""Time for the headers of a request, which are one packet or two."""

MAX_UNFINISHED = 256
"""Maximum number of connections with incomplete headers. Beyond it, the oldest one of the address with the most is
closed. Normally headers are complete within milliseconds, also behind a proxy, where all come from one address."""

READ_SECONDS = 60.0
"""Time for a client to read 48 kB of a response."""

_MAX_HEADER_BYTES = 64 << 10
"""Maximum size of the headers of a request."""

_MAX_FILES = 1 << 16
"""Number of open files that is enough."""


class Unfinished:
    """The connections with incomplete headers, the oldest first.

    Args:
        limit: Maximum number of them.
    """

    def __init__(self, limit: int = MAX_UNFINISHED) -> None:
        self._limit = limit
        self._connections: OrderedDict[Connection, str] = OrderedDict()
        self._by_address: Counter[str] = Counter()

    def add(self, connection: Connection, address: str) -> None:
        """Add a connection, and close another one if there are too many."""
        self._connections[connection] = address
        self._by_address[address] += 1
        if len(self._connections) > self._limit:
            (worst, _), *_ = self._by_address.most_common(1)
            oldest = next(one for one, its in self._connections.items() if its == worst)
            oldest.give_up()

    def remove(self, connection: Connection) -> None:
        """Remove a connection, if it is listed."""
        address = self._connections.pop(connection, None)
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]


_unfinished = Unfinished()


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with limits on the time and size of headers, and on the time to read a response."""

    _waiting: TimerHandle | None = None
    _writing: TimerHandle | None = None
    _header_bytes = 0

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._have_headers()
        self._have_written()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:  # A request begins, or is yet to.
            if self.timeout_keep_alive_task is None and self._waiting is None:
                self._wait_for_headers()
            self._header_bytes += len(data)
            if self._header_bytes > _MAX_HEADER_BYTES:
                self._refuse(431, "The headers of the request are too large.")

    def on_headers_complete(self) -> None:
        self._have_headers()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        self._header_bytes = 0
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._writing is None:
            self._writing = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._have_written()
        super().resume_writing()

    def give_up(self) -> None:
        """Close the connection because its headers have not come in time."""
        self._refuse(408, "The headers of the request did not come in time.")

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, with the headers of all responses."""
        self._refuse(400, msg)

    def handle_websocket_upgrade(self) -> None:
        """Refuse a WebSocket before uvicorn creates one, which has none of these limits."""
        self._refuse(403, "WebSockets are not served here.")

    def _wait_for_headers(self) -> None:
        self._waiting = self.loop.call_later(HEADER_SECONDS, self.give_up)
        _unfinished.add(self, self.client[0] if self.client else "")

    def _have_headers(self) -> None:
        _unfinished.remove(self)
        self._header_bytes = 0
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _have_written(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _refuse(self, status: int, sentence: str) -> None:
        self._have_headers()
        if not self.transport.is_closing():
            body = json.dumps({"detail": sentence}).encode()
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + RAW + b"\r\n" + body)
            self.transport.close()


def bound_connections() -> None:
    """Make uvicorn use ``Connection``, and let this process open as many files as the system allows."""
    # MONAI Label's command names no class of connections, and uvicorn has read its settings when the app is loaded.
    name = "http_protocol_class"
    setattr(Config, name, property(lambda _: Connection, lambda _, __: None))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
