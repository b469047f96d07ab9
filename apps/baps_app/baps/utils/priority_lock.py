"""Order the queries to a model: a click goes before the next slice of a long request, no matter who sent it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_MAX_OVERTAKEN = 4
"""Clicks that may overtake a waiting long request; then it has a turn, so that steady clicks do not starve it."""

_low_priority: ContextVar[bool] = ContextVar("low_priority", default=False)


@contextmanager
def low_priority() -> Iterator[None]:
    """Let other requests go first while the block runs, because this request queries the model many times."""
    token = _low_priority.set(True)
    try:
        yield
    finally:
        _low_priority.reset(token)


class PriorityLock:
    """Lock that is granted in the order of arrival, except that low-priority requests let others go first.

    Args:
        places: number of requests that may hold it at once.
    """

    def __init__(self, places: int = 1) -> None:
        self._guard = threading.Lock()
        self._free = places
        self._normal, self._low = deque[threading.Event](), deque[threading.Event]()
        self._overtaken = 0

    def __enter__(self) -> None:
        with self._guard:
            if self._free:
                self._free -= 1
                return
            turn = threading.Event()
            (self._low if _low_priority.get() else self._normal).append(turn)
        turn.wait()

    def __exit__(self, *_: object) -> None:
        with self._guard:
            grant_low = self._low and (not self._normal or self._overtaken >= _MAX_OVERTAKEN)
            self._overtaken = self._overtaken + 1 if self._low and not grant_low else 0
            if grant_low:
                self._low.popleft().set()
            elif self._normal:
                self._normal.popleft().set()
            else:
                self._free += 1
