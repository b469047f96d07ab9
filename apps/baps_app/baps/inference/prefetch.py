"""What will likely be asked next is made while the user looks, and never while somebody waits for an answer."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

logger = logging.getLogger(__name__)

_MOST = 16
"""Jobs that wait; of more, those that were given first are dropped."""


class Prefetcher:
    """Runs jobs in a background thread of the lowest priority, those of the last call first.

    No job is begun while somebody is answered. One that was begun goes on, on what the answer leaves of the processor.
    """

    def __init__(self) -> None:
        self._jobs: deque[Callable[[], object]] = deque(maxlen=_MOST)
        self._answering = 0
        self._changed = threading.Condition()
        self._working = False
        self._thread: threading.Thread | None = None

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Somebody waits for an answer, as long as the context lasts."""
        with self._changed:
            self._answering += 1
        try:
            yield
        finally:
            with self._changed:
                self._answering -= 1
                self._changed.notify_all()

    def plan(self, jobs: Sequence[Callable[[], object]]) -> None:
        """Have jobs done when there is time, the first of them first."""
        with self._changed:
            self._jobs.extend(reversed(jobs))
            if self._thread is None and jobs:
                self._thread = threading.Thread(target=self._work, name="look-ahead", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait(self) -> None:
        """Until nothing is left to do."""
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs and not self._working)

    def _work(self) -> None:
        if sys.platform == "linux":  # There a priority is a thread's, and those that it starts inherit it.
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs and not self._answering)
                job, self._working = self._jobs.pop(), True
            try:
                job()
            except Exception as error:  # Nobody asked for it; who does gets the error.
                logger.debug("Looking ahead failed: %s", type(error).__name__)
            finally:
                with self._changed:
                    self._working = False
                    self._changed.notify_all()
