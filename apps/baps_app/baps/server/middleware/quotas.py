"""ASGI middleware that limits how many requests of a group run at once, in total and for one user.

Waiting requests hold no thread. Each group has slots of its own, so that no group takes the threads of another. Free
slots are given to the users in turn, so that no user waits behind the queue of another user.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from baps.server.middleware.root_path import path_below
from baps.server.request_context import RequestContext


@dataclass(frozen=True)
class Group:
    """Requests that share slots.

    Attributes:
        name: Name, for the message to users whose requests are refused.
        requests: Pattern that matches the method and the path.
        slots: Maximum number of requests that run at once.
        slots_per_user: Maximum number of requests of one user that run at once. If no login is needed, one user may
            have all slots.
        max_waiting: Maximum number of waiting requests of one user; more are refused.
        retry_seconds: Time after which a refused request may be sent again.
    """

    name: str
    requests: re.Pattern[str]
    slots: int
    slots_per_user: int
    max_waiting: int
    retry_seconds: int


def _group(
    name: str, requests: str, slots: int, slots_per_user: int, max_waiting: int, retry_seconds: int = 5
) -> Group:
    return Group(name, re.compile(requests, re.DOTALL), slots, slots_per_user, max_waiting, retry_seconds)


GROUPS = (
    # Each takes a core for up to a minute; users would not wait for many of them.
    _group(
        "whole organs",
        "POST (/infer/(whole_organ|organs|scribbles)|/nninteractive(/[^/]+)?/(add_.*|predict|set_image))",
        4,
        2,
        16,
        retry_seconds=30,
    ),
    # The model runs one request at a time: more threads would only wait for it. A script may send some dozens.
    _group("clicks", "POST /infer/.*", 8, 4, 64),
    # Some strategies read volumes, one request at a time.
    _group("next samples", "POST /activelearning/.*", 4, 1, 16),
    # OHIF requests hundreds of frames at once, and needs all of them.
    _group(
        "images", r"(GET|HEAD) /(datastore/(image|label|dataset|label/rtstruct)|proxy/dicom/.*|session/.*)", 16, 6, 1000
    ),
    _group("changes", r"(PUT|POST|DELETE) /(datastore|session|train|proxy|progress)(/.*)?", 8, 2, 32),
    # If an OpenID provider does not respond, users with a token of this server can still sign in.
    _group("sign-ins at the provider", "GET /login/openid(/return)?", 8, 8, 2000),
    # Counted by address, which many users may share: the limits are so high that no user is refused.
    _group("sign-ins", r"(GET|HEAD|POST) /(auth|login|logout)(/.*)?", 8, 8, 2000),
    # Lists of thousands of images, which occupy the interpreter for a while.
    _group("lists", "GET /datastore/?", 2, 1, 500),
    # Each asks the model a few times; a page shows a dozen.
    _group("pictures", "GET /web/adapters/picture", 4, 2, 64),
    # They last for a minute, and hold no thread.
    _group("live pages", "GET /web/train/events", 32, 4, 8),
    # Pages and their files, of which a browser requests a hundred at once.
    _group("pages", ".*", 12, 6, 500),
)
"""The groups. The first one that matches a request applies."""

THREADS = sum(group.slots for group in GROUPS)
"""Number of threads that all slots together need."""


class QueueFullError(Exception):
    """A user has too many waiting requests."""


class FairQueue:
    """Gives slots to users in turn. All callers must be tasks of one event loop.

    Args:
        slots: Number of slots.
        slots_per_user: Maximum number of slots of one user.
        max_waiting: Maximum number of waiting requests of one user.
    """

    def __init__(self, slots: int, slots_per_user: int, max_waiting: int) -> None:
        self._free, self._slots_per_user, self._max_waiting = slots, slots_per_user, max_waiting
        self._held: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Event]] = OrderedDict()

    @asynccontextmanager
    async def slot(self, user: str) -> AsyncIterator[None]:
        """Wait for a slot and hold it for as long as the context lasts.

        Args:
            user: Name of the user.

        Raises:
            QueueFullError: If too many requests of the user wait.
        """
        await self._take(user)
        try:
            yield
        finally:
            self._give_back(user)

    async def _take(self, user: str) -> None:
        if self._free and self._held[user] < self._slots_per_user:
            self._free -= 1
            self._held[user] += 1
            return
        queue = self._waiting.setdefault(user, deque())
        if len(queue) >= self._max_waiting:
            raise QueueFullError
        turn = asyncio.Event()
        queue.append(turn)
        try:
            await turn.wait()
        except asyncio.CancelledError:
            if turn.is_set():
                self._give_back(user)
            else:
                queue.remove(turn)
            raise

    def _give_back(self, user: str) -> None:
        self._free += 1
        self._held[user] -= 1
        if not self._held[user]:
            del self._held[user]
        for other, queue in list(self._waiting.items()):
            if not queue:
                del self._waiting[other]
            elif self._free and self._held[other] < self._slots_per_user:
                self._waiting.move_to_end(other)
                self._free -= 1
                self._held[other] += 1
                queue.popleft().set()


class Quotas:
    """Passes on requests when a slot of their group is free.

    Args:
        app: The application behind it.
        users: Whether users must sign in. Otherwise all requests are those of one user, who may have all slots.
    """

    def __init__(self, app: ASGIApp, users: bool) -> None:
        self.app = app
        self._queues = [
            (group, FairQueue(group.slots, group.slots_per_user if users else group.slots, group.max_waiting))
            for group in GROUPS
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = f"{scope['method']} {path_below(scope)}"
        group, queue = next(pair for pair in self._queues if pair[0].requests.fullmatch(request))
        try:
            async with queue.slot(quota_user(scope)):
                await self.app(scope, receive, send)
        except QueueFullError:
            await _refusal(group)(scope, receive, send)


def quota_user(scope: Scope) -> str:
    """Return the key of the user whose quota a request counts for: the name, or the address before the sign-in.

    Args:
        scope: ASGI scope of the request, with the request's context.
    """
    context: RequestContext = scope["baps.context"]
    if context.principal is not None:
        return context.principal.name
    return f"address {(scope.get('client') or ('',))[0]}"


def _refusal(group: Group) -> JSONResponse:
    detail = f"You have {group.max_waiting} waiting requests for {group.name}. Send more when some have been answered."
    return JSONResponse({"detail": detail}, 429, {"Retry-After": str(group.retry_seconds)})
