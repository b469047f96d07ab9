"""Count how many threads are at one place at once."""

from __future__ import annotations

import threading


class Crowd:
    """A place that threads leave only when a number of them are there together.

    Args:
        size: that number. The threads fail if so many never come.
    """

    def __init__(self, size: int) -> None:
        self._together, self._guard, self._inside = threading.Barrier(size, timeout=30), threading.Lock(), 0
        self.most = 0
        """The largest number of threads that were there at once."""

    def join(self) -> None:
        """Enter, wait for the others, and leave."""
        with self._guard:
            self._inside += 1
            self.most = max(self.most, self._inside)
        self._together.wait()
        with self._guard:
            self._inside -= 1
