"""Long answers while somebody waits for them: how far they are, and an end to those that nobody wants any more."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from baps.errors import NotFoundError
from baps.utils.priority_lock import low_priority

_asker: ContextVar[tuple[Callable[[], bool] | None, str]] = ContextVar("asker", default=(None, ""))


@contextmanager
def asked_by(gone: Callable[[], bool], name: str = "") -> Iterator[None]:
    """Say who asks for the jobs of this context.

    Args:
        gone: whether they have left; their jobs end then.
        name: theirs, or "" where nobody signs in. Their jobs are their own.
    """
    token = _asker.set((gone, name))
    try:
        yield
    finally:
        _asker.reset(token)


class Job:
    """One of them.

    Args:
        model: that answers.
    """

    def __init__(self, model: str) -> None:
        self.id, self.model = uuid.uuid4().hex, model
        self.done = self.total = 0
        self._client_gone, self.owner = _asker.get()
        self._begun, self._cancelled = time.monotonic(), threading.Event()

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
        """A new job, which is listed as long as the context lasts, and lets clicks go before it."""
        job = Job(model)
        with self._lock:
            self._running[job.id] = job
        try:
            with low_priority():
                yield job
        finally:
            with self._lock:
                del self._running[job.id]

    def records(self, owner: str | None = None) -> list[dict[str, Any]]:
        """Return the records of one user's jobs, or of all, the oldest first."""
        with self._lock:
            return [job.record() for job in self._running.values() if owner in (None, job.owner)]

    def cancel(self, name: str, owner: str | None = None) -> None:
        """Have one end.

        Args:
            name: its id.
            owner: whose jobs may be ended, or None for everybody's.

        Raises:
            NotFoundError: if there is none of this id, or it is somebody else's.
        """
        with self._lock:
            job = self._running.get(name)
        if job is None or owner not in (None, job.owner):
            raise NotFoundError(f"There is no job {name!r}, or it has ended. GET /progress/ lists those that run.")
        job.cancel()
