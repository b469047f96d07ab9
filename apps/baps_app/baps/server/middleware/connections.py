"""Close connections that send incomplete headers or do not read the response.

Uvicorn waits without limit for the headers of a request, and for a client to read the response. ``limit_connections``
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
"""Time for the headers of a request, which normally fit into one packet or two."""

MAX_PENDING = 256
"""Maximum number of connections with incomplete headers. Beyond it, the address with the most such connections loses
its oldest one. Normally headers are complete within milliseconds, also behind a proxy, where all connections come from
one address."""

READ_SECONDS = 60.0
"""Time for a client to read 48 kB of a response."""

_MAX_HEADER_BYTES = 64 << 10
"""Maximum size of the headers of a request."""

EVENTS_PATH = "/web/train/events"
"""End of the path of a stream of events."""

_MAX_FILES = 1 << 16
"""Number of open files that is sufficient."""


class PendingConnections:
    """Connections with incomplete headers, the oldest first.

    Args:
        limit: Maximum number of connections.
    """

    def __init__(self, limit: int = MAX_PENDING) -> None:
        self._limit = limit
        self._connections: OrderedDict[Connection, str] = OrderedDict()
        self._by_address: Counter[str] = Counter()

    def add(self, connection: Connection, address: str) -> None:
        """Add a connection, and close another one if there are too many.

        Args:
            connection: The connection.
            address: Address of its client.
        """
        self._connections[connection] = address
        self._by_address[address] += 1
        if len(self._connections) > self._limit:
            (busiest, _), *_ = self._by_address.most_common(1)
            oldest = next(pending for pending, client in self._connections.items() if client == busiest)
            oldest.time_out()

    def remove(self, connection: Connection) -> None:
        """Remove a connection, if it is listed."""
        address = self._connections.pop(connection, None)
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]


_pending = PendingConnections()


class Connection(HttpToolsProtocol):
    """Uvicorn's connection, with limits on the time and size of headers, and on the time to read a response."""

    _header_timer: TimerHandle | None = None
    _read_timer: TimerHandle | None = None
    _header_bytes = 0

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_header_timer()
        self._stop_read_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:  # The headers of the next request are incomplete.
            if self.timeout_keep_alive_task is None and self._header_timer is None:
                self._wait_for_headers()
            self._header_bytes += len(data)
            if self._header_bytes > _MAX_HEADER_BYTES:
                self._refuse(431, "The headers of the request are too large.")

    def on_headers_complete(self) -> None:
        self._stop_header_timer()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        self._header_bytes = 0
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._read_timer is None:
            self._read_timer = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_read_timer()
        super().resume_writing()

    def shutdown(self) -> None:
        """End the connection because the server ends. A stream of events would otherwise delay the end."""
        super().shutdown()
        if self.cycle is not None and not self.cycle.response_complete and self.scope["path"].endswith(EVENTS_PATH):
            self.transport.close()

    def time_out(self) -> None:
        """Close the connection because its headers have not come in time."""
        self._refuse(408, "The headers of the request did not come in time.")

    def send_400_response(self, msg: str) -> None:
        """Refuse data that is not HTTP. The response has the security headers of all responses.

        Args:
            msg: Message for the client.
        """
        self._refuse(400, msg)

    def handle_websocket_upgrade(self) -> None:
        """Refuse a WebSocket before uvicorn creates a connection for it, which would have none of these limits."""
        self._refuse(403, "WebSockets are not served here.")

    def _wait_for_headers(self) -> None:
        self._header_timer = self.loop.call_later(HEADER_SECONDS, self.time_out)
        _pending.add(self, self.client[0] if self.client else "")

    def _stop_header_timer(self) -> None:
        _pending.remove(self)
        self._header_bytes = 0
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _stop_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _refuse(self, status: int, message: str) -> None:
        self._stop_header_timer()
        if not self.transport.is_closing():
            body = json.dumps({"detail": message}).encode()
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + RAW + b"\r\n" + body)
            self.transport.close()


def limit_connections() -> None:
    """Make uvicorn use ``Connection``, and let this process open as many files as the system allows."""
    # MONAI Label's command has no option for the class, and uvicorn has read its settings when the app is loaded.
    name = "http_protocol_class"
    setattr(Config, name, property(lambda _: Connection, lambda _, __: None))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
