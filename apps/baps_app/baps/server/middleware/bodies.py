"""Bodies of requests: read to disk within bounds of size and time, before anything is made of them.

A body is whole before a request takes a thread, so that nobody who sends slowly holds one, and at most ``_IN_MEMORY``
bytes of it are in memory. A request that is refused is refused before its body is read.
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

from baps.server.middleware.quotas import FairQueue, QueueFullError, user_of
from baps.server.request_context import RequestContext

SMALL = 1 << 20
"""Bytes of a request that brings no image."""

BODY = "baps.body"
"""Key of the ASGI scope for the file of the body, open for reading."""

_IN_MEMORY = 64 << 10
"""Bytes of a body, or of a file in a form, that are kept in memory; more go to disk."""

_IDLE_SECONDS = 30.0
"""That are waited for the next bytes of a body. Between them the network of a ward may be away for some seconds."""

_GRACE_SECONDS, _BYTES_PER_SECOND = 60.0, 8 << 10
"""A body may take so long, and for each byte so much longer: the slowest link that an image is sent over."""

_SMALL_EACH = 64
"""Unfinished small bodies of one user; of more, the oldest is ended. A whole one takes milliseconds."""

_LARGE, _LARGE_EACH, _LARGE_WAITING = 64, 8, 64
"""Large bodies that are read at once, in all and of one user, and those of one user that wait."""

_IMAGES_EACH, _IMAGES = 2, 8
"""Bytes that bodies take on disk, of one user and in all, as multiples of the largest image."""

_KEPT_FREE, _KEPT_SHARE = 1 << 30, 10
"""Bytes of the disk that are left for others, but of a small one, as in a container, a tenth at most."""

_FIELDS, _FILES = 64, 1000
"""Of a form: nobody sends more fields, and a session may bring a series, a file for each slice."""

_DISK = CapacityLimiter(8)
"""Threads that write bodies; those of the pool are for answers."""


class _Reading:
    """A body that is being read.

    Attributes:
        cancel: ends it.
        size: bytes so far.
    """

    def __init__(self) -> None:
        self.cancel, self.size = anyio.CancelScope(), 0


class Bodies:
    """Reads the body of each request to a file and passes it on from there.

    Args:
        app: behind it.
        most_bytes: of a request that brings images.
        missing: says what a request names that is not there, or "".
    """

    def __init__(self, app: ASGIApp, most_bytes: int, missing: Callable[[Scope], str] = lambda _: "") -> None:
        self.app, self._most, self._missing = app, most_bytes, missing
        self._large = FairQueue(_LARGE, _LARGE_EACH, _LARGE_WAITING)
        self._small: dict[str, OrderedDict[_Reading, None]] = {}
        self._bytes: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # 3D Slicer's client repeats the length of an upload with requests that bring nothing.
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT") or not has_body(scope):
            await self.app(scope, receive, send)
            return
        asked: RequestContext = scope["baps.asked"]
        most = most_bytes(asked, self._most)
        declared = Headers(scope=scope).get("content-length")
        user = user_of(scope)
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as spooled:
            file = cast(BinaryIO, spooled)
            reading = _Reading()
            try:
                if asked.kind and asked.kind.large:
                    said = await to_thread.run_sync(self._missing, scope, limiter=_DISK)
                    if said:
                        raise HTTPException(404, said)
                if declared is not None and int(declared) <= SMALL:
                    with self._oldest_ended(user, reading), reading.cancel:
                        await self._read(receive, file, reading, most, user)
                    if reading.cancel.cancelled_caught:
                        raise HTTPException(408, "Other requests came before this one was whole. Send it again.")
                else:
                    async with self._large.slot(user):
                        _check_room(int(declared or 0))
                        await self._read(receive, file, reading, most, user)
                file.seek(0)
                scope[BODY] = file
                await self.app(scope, _replay(file, receive), send)
            except HTTPException as refusal:
                await _refused(refusal)(scope, receive, send)
            except QueueFullError:
                sentence = f"You are sending {_LARGE_EACH + _LARGE_WAITING} files. Send more when some have arrived."
                await _refused(HTTPException(429, sentence, {"Retry-After": "30"}))(scope, receive, send)
            except _GoneError:
                return
            finally:
                self._bytes[user] -= reading.size
                if self._bytes[user] <= 0:
                    del self._bytes[user]

    @contextmanager
    def _oldest_ended(self, user: str, reading: _Reading) -> Iterator[None]:
        """List an unfinished small body, and end the oldest of the user's if there are too many."""
        theirs = self._small.setdefault(user, OrderedDict())
        theirs[reading] = None
        if len(theirs) > _SMALL_EACH:
            theirs.popitem(last=False)[0].cancel.cancel()
        try:
            yield
        finally:
            theirs.pop(reading, None)
            if not theirs:
                self._small.pop(user, None)

    async def _read(self, receive: Receive, file: BinaryIO, reading: _Reading, most: int, user: str) -> None:
        """Read a body to a file.

        Raises:
            HTTPException: 408 if it comes too slowly, 413 if it is too large, 429 if the user has too much on the disk.
            _GoneError: if the client has left.
        """
        waited, checked = 0.0, 0
        while True:
            begun = time.monotonic()
            left = _GRACE_SECONDS + reading.size / _BYTES_PER_SECOND - waited
            message: Message | None = None
            with anyio.move_on_after(min(_IDLE_SECONDS, left)):
                message = await receive()
            waited += time.monotonic() - begun
            if message is None:
                raise HTTPException(408, "The request came too slowly, and was given up. Send it again.")
            if message["type"] == "http.disconnect":
                raise _GoneError
            part: bytes = message.get("body", b"")
            reading.size += len(part)
            self._bytes[user] += len(part)
            if reading.size > most:
                raise too_large(most)
            if reading.size > SMALL and (
                self._bytes[user] > _IMAGES_EACH * self._most or self._bytes.total() > _IMAGES * self._most
            ):
                raise HTTPException(
                    429,
                    f"You are sending more than {_IMAGES_EACH * self._most >> 20:,} MB at once, or all users too much. "
                    "Send one file after the other.",
                    {"Retry-After": "30"},
                )
            if reading.size - checked > 64 << 20:
                checked = reading.size
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


class _GoneError(Exception):
    """The client has left before the body was whole."""


def has_body(scope: Scope) -> bool:
    """Whether a request announces a body."""
    headers = Headers(scope=scope)
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def most_bytes(asked: RequestContext, most: int) -> int:
    """The most bytes that a request of a kind may have, where an image may have ``most``."""
    return most if asked.kind and asked.kind.large else SMALL


def too_large(most: int) -> HTTPException:
    """Make the refusal of a request that is too large."""
    return HTTPException(
        413,
        f"The request is larger than the {most >> 20:,} MB that are taken. Send less, or have the operator raise "
        "max_upload_mb.",
    )


def _check_room(size: int) -> None:
    """Refuse a body that the disk for temporary files has no room for.

    Raises:
        HTTPException: 507.
    """
    disk = shutil.disk_usage(tempfile.gettempdir())
    if disk.free - size < min(_KEPT_FREE, disk.total // _KEPT_SHARE):
        raise _no_room()


def _no_room() -> HTTPException:
    return HTTPException(507, "The server's disk has no room for the request. Tell its operator, then try again.")


def _refused(refusal: HTTPException) -> Response:
    return JSONResponse({"detail": refusal.detail}, refusal.status_code, refusal.headers)


def _replay(file: BinaryIO, receive: Receive) -> Receive:
    """The messages of a body that lies in a file, then those that come after it."""
    done = False

    async def replayed() -> Message:
        nonlocal done
        if done:
            return await receive()
        part = file.read(_IN_MEMORY)  # Of a file that was written just now: the system has it in memory.
        done = len(part) < _IN_MEMORY
        if done:
            file.truncate(0)  # What is made of it lies elsewhere.
        return {"type": "http.request", "body": part, "more_body": not done}

    return replayed


class CloseUnread:
    """Closes the connection after an answer to a request whose body was not read.

    Args:
        app: behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not has_body(scope):
            await self.app(scope, receive, send)
            return
        unread = True

        async def received() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message.get("more_body", False)
            return message

        async def sent(message: Message) -> None:
            if unread and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await send(message)

        await self.app(scope, received, sent)


class _BoundedRequest(Request):
    """A request whose form has a bounded number of fields and files."""

    def form(self, **_: object) -> Any:  # An awaitable of a private class.
        return super().form(max_files=_FILES, max_fields=_FIELDS)


class BoundedRoute(APIRoute):
    """A route whose forms are bounded."""

    def get_route_handler(self) -> Callable[[Request], object]:  # type: ignore[override]
        handler = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            return await handler(_BoundedRequest(request.scope, request.receive))

        return bounded


def limit_memory_of_forms() -> None:
    """Keep at most ``_IN_MEMORY`` bytes of each file of a form in memory, in this process.

    Starlette keeps a megabyte of each, and offers no other way to set it.
    """
    MultiPartParser.spool_max_size = _IN_MEMORY
