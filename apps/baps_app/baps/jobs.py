"""Long answers while somebody waits for them: how far they are, and an end to those that nobody wants any more."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from .errors import NotFoundError

_gone: ContextVar[Callable[[], bool] | None] = ContextVar("client_gone", default=None)


@contextmanager
def asked_by(gone: Callable[[], bool]) -> Iterator[None]:
    """Who asks may leave: jobs of this context end when ``gone`` says so."""
    token = _gone.set(gone)
    try:
        yield
    finally:
        _gone.reset(token)


class Job:
    """One of them.

    Args:
        model: that answers.
    """

    def __init__(self, model: str) -> None:
        self.id, self.model = uuid.uuid4().hex, model
        self.done = self.total = 0
        self._begun, self._cancelled, self._client_gone = time.monotonic(), threading.Event(), _gone.get()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._begun

    def report(self, done: int, total: int) -> None:
        """Note how far it is."""
        self.done, self.total = done, total

    def cancel(self) -> None:
        """Have it end."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether somebody cancelled it, or who asked has left."""
        if not self._cancelled.is_set() and self._client_gone and self._client_gone():
            self._cancelled.set()
        return self._cancelled.is_set()

    def record(self) -> dict[str, Any]:
        """For whoever watches; it says nothing of the image."""
        return {
            "id": self.id,
            "model": self.model,
            "done": self.done,
            "total": self.total,
            "seconds": round(self.seconds, 3),
        }


class Jobs:
    """Those that run now. Thread-safe."""

    def __init__(self) -> None:
        self._running: dict[str, Job] = {}
        self._lock = threading.Lock()

    @contextmanager
    def running(self, model: str) -> Iterator[Job]:
        """A new job, which is listed as long as the context lasts."""
        job = Job(model)
        with self._lock:
            self._running[job.id] = job
        try:
            yield job
        finally:
            with self._lock:
                del self._running[job.id]

    def records(self) -> list[dict[str, Any]]:
        """Records of all, the oldest first."""
        with self._lock:
            return [job.record() for job in self._running.values()]

    def cancel(self, name: str) -> None:
        """Have one end.

        Raises:
            NotFoundError: if there is none of this id.
        """
        with self._lock:
            job = self._running.get(name)
        if job is None:
            raise NotFoundError(f"There is no job {name!r}, or it has ended. GET /progress/ lists those that run.")
        job.cancel()
