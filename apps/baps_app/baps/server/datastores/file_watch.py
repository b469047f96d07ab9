"""Detect files that are added to or removed from the folders of a datastore while it is served.

The folders are polled when the list of images is requested. Polling reads the modification time of each folder, which
takes microseconds. It detects files that were moved as well as files that were copied, works on network drives, and
needs no inotify watches, of which a user of Linux has few.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

SETTLE_SECONDS = 5.0
"""Seconds for which a new file or series must not have changed. A file that is being copied changes all the time."""

_CLOCK_RESOLUTION = 0.02
"""Seconds within which two changes may have the same modification time on common file systems."""

_FAT_CLOCK_RESOLUTION = 2.0
"""The same on FAT."""

_MAX_INTERVAL = 60.0
"""Seconds after which the folders are read in any case, because some network drives keep no modification times."""


class FolderWatch:
    """Decides when folders must be read again, and which new files are complete.

    Args:
        folders: Returns the folders to watch.
        read: Reads the folders again. It calls ``is_complete`` for each new file and series.
        lock: Lock to hold while the folders are read.
    """

    def __init__(
        self, folders: Callable[[], Iterable[Path]], read: Callable[[], None], lock: AbstractContextManager[Any]
    ) -> None:
        self._folders, self._read, self._lock = folders, read, lock
        self._mtimes: dict[Path, int] = {}
        self._read_at_file_clock = self._read_at = 0.0
        self._incomplete: dict[Path, tuple[tuple[int, ...], float]] = {}
        self._checked: set[Path] = set()

    def read_if_changed(self) -> None:
        """Read the folders again if files were added or removed since they were last read."""
        if not self._must_read():
            return
        with self._lock:
            if self._must_read():  # Another thread may have read them meanwhile.
                self._checked.clear()
                self._read_at_file_clock, self._read_at = time.time(), time.monotonic()
                self._mtimes = self._folder_mtimes()
                self._read()
                self._incomplete = {path: state for path, state in self._incomplete.items() if path in self._checked}

    def is_complete(self, path: Path) -> bool:
        """Return whether a new file, or the folder of a series, has not changed for ``SETTLE_SECONDS``.

        A file that was moved keeps its modification time, so it is complete at once.

        Args:
            path: The file or the folder.
        """
        stamp, now = _stamp(path), time.monotonic()
        self._checked.add(path)
        last_stamp, since = self._incomplete.get(path, ((), now))
        since = since if last_stamp == stamp else now
        # Measured by the clock of the files or, if a file is from the future, by the time since its last change here.
        has_changed_recently = 0 <= time.time() - stamp[0] / 1e9 < SETTLE_SECONDS
        is_from_the_future = time.time() * 1e9 < stamp[0]
        if has_changed_recently or (is_from_the_future and now - since < SETTLE_SECONDS):
            self._incomplete[path] = stamp, since
            return False
        self._incomplete.pop(path, None)
        return True

    def _must_read(self) -> bool:
        age = time.monotonic() - self._read_at
        if age > _MAX_INTERVAL or (self._incomplete and age > min(1.0, SETTLE_SECONDS)):
            return True
        if (mtimes := self._folder_mtimes()) != self._mtimes:
            return True
        # A change right after the last read may have left the modification time as it was.
        distance = abs(self._read_at_file_clock - max(mtimes.values(), default=0) / 1e9)
        return distance < _CLOCK_RESOLUTION or (distance < _FAT_CLOCK_RESOLUTION < age)

    def _folder_mtimes(self) -> dict[Path, int]:
        """Return the modification time of each folder in ns, or 0 if there is no such folder."""
        mtimes = {}
        for folder in self._folders():
            try:
                mtimes[folder] = folder.stat().st_mtime_ns
            except OSError:
                mtimes[folder] = 0
        return mtimes


def _stamp(path: Path) -> tuple[int, ...]:
    """Return the newest modification time in ns, the number of files and their size in bytes, including a folder's."""
    try:
        stats = [file.stat() for file in (path, *(path.iterdir() if path.is_dir() else ()))]
    except OSError:  # It is being removed.
        return (time.time_ns(),)
    return max(stat.st_mtime_ns for stat in stats), len(stats), sum(stat.st_size for stat in stats)
