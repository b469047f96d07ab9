"""Track long requests: report their progress, and cancel them when the client has disconnected."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from baps.errors import NotFoundError
from baps.utils.priority_lock import low_priority

CLIENT = "client"
"""Field that the server adds to a request: its ``Client``."""


@dataclass(frozen=True)
class Client:
    """The client that a job runs for.

    Attributes:
        is_gone: Returns whether the client has disconnected; its jobs are then cancelled.
        name: Name of the user, who owns the jobs, or "" if no login is needed.
    """

    is_gone: Callable[[], bool]
    name: str = ""


class Job:
    """A long request that is running.

    Args:
        model: Name of the infer task.
        client: The client, or None if it cannot disconnect.
    """

    def __init__(self, model: str, client: Client | None = None) -> None:
        self.id, self.model = uuid.uuid4().hex, model
        self.done = self.total = 0
        self.owner, self._client = client.name if client else "", client
        self._begun, self._cancelled = time.monotonic(), threading.Event()

    @property
    def seconds(self) -> float:
        """Seconds since the job began."""
        return time.monotonic() - self._begun

    def report(self, done: int, total: int) -> None:
        """Set the progress.

        Args:
            done: Number of finished steps.
            total: Number of all steps.
        """
        self.done, self.total = done, total

    def cancel(self) -> None:
        """Cancel the job. It ends after its current step."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether the job was cancelled or its client has disconnected."""
        if not self._cancelled.is_set() and self._client and self._client.is_gone():
            self._cancelled.set()
        return self._cancelled.is_set()

    def to_dict(self) -> dict[str, Any]:
        """Return the progress for JSON, without anything about the image."""
        return {
            "id": self.id,
            "model": self.model,
            "done": self.done,
            "total": self.total,
            "seconds": round(self.seconds, 3),
        }


class LongRequests:
    """The long requests that are running. Thread-safe."""

    def __init__(self) -> None:
        self._running: dict[str, Job] = {}
        self._lock = threading.Lock()

    @contextmanager
    def running(self, model: str, client: Client | None = None) -> Iterator[Job]:
        """Begin a job, which is listed for as long as the context lasts; clicks have priority over it.

        Args:
            model: Name of the infer task.
            client: The client, or None if it cannot disconnect.

        Yields:
            The job.
        """
        job = Job(model, client)
        with self._lock:
            self._running[job.id] = job
        try:
            with low_priority():
                yield job
        finally:
            with self._lock:
                del self._running[job.id]

    def to_dicts(self, owner: str | None = None) -> list[dict[str, Any]]:
        """Return the progress of one user's jobs, or of all jobs, the oldest first.

        Args:
            owner: The user, or None for all.

        Returns:
            One dictionary per job, see ``Job.to_dict``.
        """
        with self._lock:
            return [job.to_dict() for job in self._running.values() if owner in (None, job.owner)]

    def cancel(self, job_id: str, owner: str | None = None) -> None:
        """Cancel a job.

        Args:
            job_id: Id of the job.
            owner: User whose jobs may be cancelled, or None for all.

        Raises:
            NotFoundError: If there is no such job, or it is another user's.
        """
        with self._lock:
            job = self._running.get(job_id)
        if job is None or owner not in (None, job.owner):
            raise NotFoundError(f"There is no job {job_id!r}, or it has ended. GET /progress/ lists the running ones.")
        job.cancel()
