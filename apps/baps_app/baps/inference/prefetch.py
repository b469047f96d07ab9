"""Compute in the background what is likely to be requested next, and only while no request is being answered."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

logger = logging.getLogger(__name__)

_MAX_JOBS = 16
"""Maximum number of waiting jobs; beyond it, the oldest are dropped."""


class Prefetcher:
    """Run jobs in a background thread of the lowest priority; the jobs of the last call come first.

    No job starts while a request is being answered. A job that is already running continues, with what the answer
    leaves of the processor.
    """

    def __init__(self) -> None:
        self._jobs: deque[Callable[[], object]] = deque(maxlen=_MAX_JOBS)
        self._pauses = 0
        self._changed = threading.Condition()
        self._running = False
        self._thread: threading.Thread | None = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Start no job while the context lasts: a request is being answered."""
        with self._changed:
            self._pauses += 1
        try:
            yield
        finally:
            with self._changed:
                self._pauses -= 1
                self._changed.notify_all()

    def schedule(self, jobs: Sequence[Callable[[], object]]) -> None:
        """Queue jobs for the background thread.

        Args:
            jobs: called without arguments, the first one first; their results are ignored.
        """
        with self._changed:
            self._jobs.extend(reversed(jobs))
            if self._thread is None and jobs:
                self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until no job is queued or running."""
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs and not self._running)

    def _work(self) -> None:
        if sys.platform == "linux":  # On Linux a priority belongs to a thread, and threads that it starts inherit it.
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs and not self._pauses)
                job, self._running = self._jobs.pop(), True
            try:
                job()
            except Exception as error:  # A request for the same thing raises the error itself.
                logger.debug("Prefetching failed: %s", type(error).__name__)
            finally:
                with self._changed:
                    self._running = False
                    self._changed.notify_all()
