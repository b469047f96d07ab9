"""ASGI middleware that reads the bodies of requests to disk, within limits of size and time.

A body is complete before its request takes a thread, so that slow clients hold none, and at most ``_IN_MEMORY`` bytes
of it are in memory. A request that is refused is refused before its body is read.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import anyio
from anyio import CapacityLimiter, to_thread
from fastapi import HTTPException
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartParser
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baps.server.middleware.quotas import FairQueue, QueueFullError, quota_user
from baps.server.request_context import RequestContext

SMALL = 1 << 20
"""Maximum size in bytes of a request that brings no image."""

BODY = "baps.body"
"""Key in the ASGI scope of the file with the body, open for reading."""

_IN_MEMORY = 64 << 10
"""Bytes of a body, or of a file in a form, that are kept in memory; the rest goes to disk."""

_IDLE_SECONDS = 30.0
"""Seconds to wait for the next bytes of a body. The network of a ward may fail for some seconds."""

_GRACE_SECONDS, _BYTES_PER_SECOND = 60.0, 8 << 10
"""Seconds that a body may take, plus its size at the rate of the slowest link that sends images."""

_SMALL_EACH = 64
"""Maximum number of incomplete small bodies of one user. Beyond it, the oldest one is cancelled; normally a small body
is complete within milliseconds."""

_LARGE, _LARGE_EACH, _LARGE_WAITING = 64, 8, 64
"""Large bodies that are read at once, in total and of one user, and those of one user that wait."""

_IMAGES_EACH, _IMAGES = 2, 8
"""Disk space of bodies, of one user and in total, as multiples of the largest image."""

_MIN_FREE_BYTES, _MIN_FREE_SHARE = 1 << 30, 10
"""Bytes of the disk that are left free; on a small disk, as in a container, at most a tenth of the disk."""

_FIELDS, _FILES = 64, 1000
"""Maximum number of fields and files of a form; a session may bring a series, with a file for each slice."""

_DISK = CapacityLimiter(8)
"""Threads that write bodies, beside those of the pool, which run the routes."""


class _Reading:
    """A body that is being read.

    Attributes:
        cancel: Scope to cancel reading.
        size: Bytes so far.
    """

    def __init__(self) -> None:
        self.cancel, self.size = anyio.CancelScope(), 0


class Bodies:
    """Reads the body of each request to a file and passes it on from there.

    Args:
        app: The application behind it.
        max_bytes: Maximum size of a request that brings images.
        find_missing: Returns a message if a request names something that does not exist, else "".
    """

    def __init__(self, app: ASGIApp, max_bytes: int, find_missing: Callable[[Scope], str] = lambda _: "") -> None:
        self.app, self._max_image_bytes, self._find_missing = app, max_bytes, find_missing
        self._large = FairQueue(_LARGE, _LARGE_EACH, _LARGE_WAITING)
        self._small: dict[str, OrderedDict[_Reading, None]] = {}
        self._bytes: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # 3D Slicer's client repeats the length of an upload with later requests that have no body.
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT") or not has_body(scope):
            await self.app(scope, receive, send)
            return
        context: RequestContext = scope["baps.context"]
        limit = max_body_bytes(context, self._max_image_bytes)
        declared = Headers(scope=scope).get("content-length")
        user = quota_user(scope)
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as spooled:
            file = cast(BinaryIO, spooled)
            reading = _Reading()
            try:
                if context.policy and context.policy.brings_images:
                    missing = await to_thread.run_sync(self._find_missing, scope, limiter=_DISK)
                    if missing:
                        raise HTTPException(404, missing)
                if declared is not None and int(declared) <= SMALL:
                    with self._limit_small_bodies(user, reading), reading.cancel:
                        await self._read(receive, file, reading, limit, user)
                    if reading.cancel.cancelled_caught:
                        raise HTTPException(408, "Other requests came before this one was complete. Send it again.")
                else:
                    async with self._large.slot(user):
                        _check_room(int(declared or 0))
                        await self._read(receive, file, reading, limit, user)
                file.seek(0)
                scope[BODY] = file
                await self.app(scope, _replay(file, receive), send)
            except HTTPException as refusal:
                await _to_response(refusal)(scope, receive, send)
            except QueueFullError:
                sentence = f"You are sending {_LARGE_EACH + _LARGE_WAITING} files. Send more when some have arrived."
                await _to_response(HTTPException(429, sentence, {"Retry-After": "30"}))(scope, receive, send)
            except _ClientDisconnectedError:
                return
            finally:
                self._bytes[user] -= reading.size
                if self._bytes[user] <= 0:
                    del self._bytes[user]

    @contextmanager
    def _limit_small_bodies(self, user: str, reading: _Reading) -> Iterator[None]:
        """List an incomplete small body, and cancel the user's oldest if there are too many."""
        bodies = self._small.setdefault(user, OrderedDict())
        bodies[reading] = None
        if len(bodies) > _SMALL_EACH:
            bodies.popitem(last=False)[0].cancel.cancel()
        try:
            yield
        finally:
            bodies.pop(reading, None)
            if not bodies:
                self._small.pop(user, None)

    async def _read(self, receive: Receive, file: BinaryIO, reading: _Reading, limit: int, user: str) -> None:
        """Read a body to a file.

        Raises:
            HTTPException: 408 if it comes too slowly, 413 if it is larger than the limit in bytes, 429 if the user has
                too much on the disk, 507 if the disk is full.
            _ClientDisconnectedError: if the client disconnected.
        """
        waited, checked_size = 0.0, 0
        while True:
            started = time.monotonic()
            time_left = _GRACE_SECONDS + reading.size / _BYTES_PER_SECOND - waited
            message: Message | None = None
            with anyio.move_on_after(min(_IDLE_SECONDS, time_left)):
                message = await receive()
            waited += time.monotonic() - started
            if message is None:
                raise HTTPException(408, "The request came too slowly and was cancelled. Send it again.")
            if message["type"] == "http.disconnect":
                raise _ClientDisconnectedError
            part: bytes = message.get("body", b"")
            reading.size += len(part)
            self._bytes[user] += len(part)
            if reading.size > limit:
                raise too_large(limit)
            user_limit, total_limit = _IMAGES_EACH * self._max_image_bytes, _IMAGES * self._max_image_bytes
            if reading.size > SMALL and (self._bytes[user] > user_limit or self._bytes.total() > total_limit):
                raise HTTPException(
                    429,
                    f"You are sending more than {user_limit >> 20:,} MB at once, or all users together send too much. "
                    "Send one file after the other.",
                    {"Retry-After": "30"},
                )
            if reading.size - checked_size > 64 << 20:
                checked_size = reading.size
                _check_room(0)
            if reading.size > _IN_MEMORY:
                try:
                    await to_thread.run_sync(file.write, part, limiter=_DISK)
                except OSError as error:
                    raise _no_room() from error
            else:
                file.write(part)
            if not message.get("more_body", False):
                return


class _ClientDisconnectedError(Exception):
    """The client disconnected before the body was complete."""


def has_body(scope: Scope) -> bool:
    """Return whether the headers of a request announce a body.

    Args:
        scope: ASGI scope of the request.
    """
    headers = Headers(scope=scope)
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def max_body_bytes(context: RequestContext, max_image_bytes: int) -> int:
    """Return the maximum size of a request in bytes.

    Args:
        context: What is known of the request.
        max_image_bytes: Maximum size of a request that brings images.
    """
    return max_image_bytes if context.policy and context.policy.brings_images else SMALL


def too_large(limit: int) -> HTTPException:
    """Return the error for a request that is too large.

    Args:
        limit: Maximum size in bytes.
    """
    return HTTPException(
        413,
        f"The request is larger than the {limit >> 20:,} MB that are accepted. Send less, or have the operator raise "
        "max_upload_mb.",
    )


def _check_room(size: int) -> None:
    """Refuse a body if the disk for temporary files has no room for it.

    Raises:
        HTTPException: 507.
    """
    disk = shutil.disk_usage(tempfile.gettempdir())
    if disk.free - size < min(_MIN_FREE_BYTES, disk.total // _MIN_FREE_SHARE):
        raise _no_room()


def _no_room() -> HTTPException:
    return HTTPException(507, "The server's disk has no room for the request. Tell its operator, then try again.")


def _to_response(refusal: HTTPException) -> Response:
    return JSONResponse({"detail": refusal.detail}, refusal.status_code, refusal.headers)


def _replay(file: BinaryIO, receive: Receive) -> Receive:
    """Return a function that receives the body from a file, and then the messages that follow."""
    done = False

    async def replayed() -> Message:
        nonlocal done
        if done:
            return await receive()
        part = file.read(_IN_MEMORY)  # Does not block for long: the file was just written, so it is in the page cache.
        done = len(part) < _IN_MEMORY
        if done:
            file.truncate(0)  # The route has its own copy.
        return {"type": "http.request", "body": part, "more_body": not done}

    return replayed


class CloseUnread:
    """Closes the connection after the response to a request whose body was not read.

    Args:
        app: The application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not has_body(scope):
            await self.app(scope, receive, send)
            return
        unread = True

        async def receive_and_note() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message.get("more_body", False)
            return message

        async def send_with_close(message: Message) -> None:
            if unread and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await send(message)

        await self.app(scope, receive_and_note, send_with_close)


class _BoundedRequest(Request):
    """A request whose form has a limited number of fields and files."""

    def form(self, **_: object) -> Any:  # An awaitable of a private class.
        return super().form(max_files=_FILES, max_fields=_FIELDS)


class BoundedRoute(APIRoute):
    """A route that limits the number of fields and files of forms."""

    def get_route_handler(self) -> Callable[[Request], object]:  # type: ignore[override]
        """Return the route's handler, which gets requests with limited forms."""
        handler = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            return await handler(_BoundedRequest(request.scope, request.receive))

        return bounded


def limit_memory_of_forms() -> None:
    """Keep at most ``_IN_MEMORY`` bytes of each file of a form in memory, in this process.

    Starlette keeps a megabyte of each, and offers no other way to set it.
    """
    MultiPartParser.spool_max_size = _IN_MEMORY
