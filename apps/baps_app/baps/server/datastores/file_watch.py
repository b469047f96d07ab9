"""What comes to the folders of a datastore, and goes, while it is served: noticed when the list is asked for.

Folders are looked at, not watched: a look asks for the time of change of each, which takes microseconds, sees what was
moved as well as what was copied, needs none of the few watches that a user of Linux has, and works on network drives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

SETTLE_SECONDS = 5.0
"""Seconds for which a new file or series must not have changed; a copy that is under way changes all the time."""

_TICK = 0.02
"""Seconds within which two changes may leave one time of change, on the usual file systems."""

_COARSE = 2.0
"""Likewise on FAT."""

_AT_LEAST_EVERY = 60.0
"""Seconds after which the folders are read again whatever their times say: some network drives keep none."""


class FolderWatch:
    """Tells when folders must be read again, and which of the new files are whole.

    Args:
        folders: lists those that are looked at.
        read: reads them again, and asks ``is_complete`` of each new file and series.
        lock: held while they are read.
    """

    def __init__(
        self, folders: Callable[[], Iterable[Path]], read: Callable[[], None], lock: AbstractContextManager[Any]
    ) -> None:
        self._folders, self._read, self._lock = folders, read, lock
        self._times: dict[Path, int] = {}
        self._begun = self._read_at = 0.0
        self._waiting: dict[Path, tuple[tuple[int, ...], float]] = {}
        self._seen: set[Path] = set()

    def look(self) -> None:
        """Read the folders again if something came or went since they were last read."""
        if not self._must_read():
            return
        with self._lock:
            if self._must_read():  # Another thread may just have done it.
                self._seen.clear()
                self._begun, self._read_at = time.time(), time.monotonic()
                self._times = self._times_of_change()
                self._read()
                self._waiting = {path: known for path, known in self._waiting.items() if path in self._seen}

    def is_complete(self, path: Path) -> bool:
        """Return whether a file, or the folder of a series, has not changed for a while.

        What was moved has kept its time of change, and is whole at once.
        """
        stamp, now = _stamp(path), time.monotonic()
        self._seen.add(path)
        before, since = self._waiting.get(path, ((), now))
        since = since if before == stamp else now
        # By the clock of the files, or, where that goes wrong, by what was seen of them.
        if 0 <= time.time() - stamp[0] / 1e9 < SETTLE_SECONDS or (
            time.time() * 1e9 < stamp[0] and now - since < SETTLE_SECONDS
        ):
            self._waiting[path] = stamp, since
            return False
        self._waiting.pop(path, None)
        return True

    def _must_read(self) -> bool:
        since = time.monotonic() - self._read_at
        if since > _AT_LEAST_EVERY or (self._waiting and since > min(1.0, SETTLE_SECONDS)):
            return True
        if (times := self._times_of_change()) != self._times:
            return True
        before = abs(self._begun - max(times.values(), default=0) / 1e9)
        return before < _TICK or (before < _COARSE < since)

    def _times_of_change(self) -> dict[Path, int]:
        times = {}
        for folder in self._folders():
            try:
                times[folder] = folder.stat().st_mtime_ns
            except OSError:
                times[folder] = 0
        return times


def _stamp(path: Path) -> tuple[int, ...]:
    """The newest time of change (ns), how many files there are, and their bytes; of a folder with what is in it."""
    try:
        found = [one.stat() for one in (path, *(path.iterdir() if path.is_dir() else ()))]
    except OSError:  # It goes while it is looked at.
        return (time.time_ns(),)
    return max(one.st_mtime_ns for one in found), len(found), sum(one.st_size for one in found)
