"""Whose turn it is to ask the model: a click goes before the next slice of a whole organ, whoever asked for that."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_PASSED_BY = 4
"""Clicks that go before a long answer that waits; then it has a turn, so that clicks without a pause do not stop it."""

_long: ContextVar[bool] = ContextVar("long_answer", default=False)


@contextmanager
def long_answer() -> Iterator[None]:
    """Let others go first, as long as the context lasts: the answer asks the model many times."""
    token = _long.set(True)
    try:
        yield
    finally:
        _long.reset(token)


class Turns:
    """A lock whose holders come in the order in which they asked, but for long answers, which let others go first."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._taken = False
        self._short, self._long = deque[threading.Event](), deque[threading.Event]()
        self._passed = 0

    def __enter__(self) -> None:
        with self._changing:
            if not self._taken:
                self._taken = True
                return
            turn = threading.Event()
            (self._long if _long.get() else self._short).append(turn)
        turn.wait()

    def __exit__(self, *_: object) -> None:
        with self._changing:
            by_long = self._long and (not self._short or self._passed >= _PASSED_BY)
            self._passed = self._passed + 1 if self._long and not by_long else 0
            if by_long:
                self._long.popleft().set()
            elif self._short:
                self._short.popleft().set()
            else:
                self._taken = False
