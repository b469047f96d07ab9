"""Whether the labels of a folder of studies can be read on their images: each is read once, and when it changes."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from baps.errors import BapsError, InputError
from baps.imaging.label_map import LabelMap
from baps.utils.atomic_write import atomic_write

FILE = ".label-checks.json"

_PATIENCE = 1.0
"""Seconds that a call reads labels which nobody has read; the next call goes on."""


@dataclass(frozen=True)
class LabelCheck:
    """What reading a label said.

    Attributes:
        stamp: of the files of the label and the image, when it was read.
        error: why it cannot be used, or "".
        names: of its segments by value, where the file says them.
    """

    stamp: list[int]
    error: str = ""
    names: dict[int, str] = field(default_factory=dict)


class LabelChecks:
    """What reading each label said, kept on disk where that can be written; only a file that changed is read again.

    One thread at a time reads labels. Who comes meanwhile gets what is known, and does not wait.

    Args:
        folder: of the studies.
        read_only: keep nothing on disk.
    """

    def __init__(self, folder: Path, read_only: bool = False) -> None:
        self._file = None if read_only else folder / FILE
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._known: dict[str, LabelCheck] = {}
        # What another version of the program found need not hold; a broken file is made anew.
        with suppress(OSError, ValueError, TypeError, AttributeError, KeyError):
            kept = json.loads((folder / FILE).read_text())
            if kept["program"] == version("baps-monailabel"):
                for name, one in kept["labels"].items():
                    names = {int(value): str(called) for value, called in one["names"].items()}
                    self._known[name] = LabelCheck(one["stamp"], one["error"], names)

    def check(
        self,
        files: Mapping[str, tuple[str, str]],
        read: Callable[[str], LabelMap],
        patience: float = _PATIENCE,
    ) -> dict[str, LabelCheck]:
        """Check labels.

        Args:
            files: of the label and of the image, by the image's name.
            read: reads the label of an image.
            patience: seconds after which no further label is read.

        Returns:
            By name what is known; a label that there was no time to read yet is missing.
        """
        found, changed = {}, {}
        with self._lock:
            for name, pair in files.items():
                stamp, known = _stamp(pair), self._known.get(name)
                if known is None or known.stamp != stamp:
                    changed[name] = stamp
                else:
                    found[name] = known
        if changed and self._reading.acquire(blocking=patience == math.inf):
            try:
                found |= self._read_changed(changed, read, patience)
            finally:
                self._reading.release()
        return {name: found[name] for name in files if name in found}

    def _read_changed(
        self, changed: Mapping[str, list[int]], read: Callable[[str], LabelMap], patience: float
    ) -> dict[str, LabelCheck]:
        """Read labels until ``patience`` is spent, of those that no other thread has read meanwhile."""
        found, end = {}, time.monotonic() + patience
        for name, stamp in changed.items():
            known = self._known.get(name)
            if known is None or known.stamp != stamp:
                if time.monotonic() > end:
                    continue
                known = _read(stamp, name, read)
                with self._lock:
                    self._known[name] = known
            found[name] = known
        with self._lock:
            self._keep()
        return found

    def note(self, name: str, files: tuple[str, str], names: Mapping[int, str]) -> None:
        """Note a label that has just been read, and can be used."""
        with self._lock:
            self._known[name] = LabelCheck(_stamp(files), "", dict(names))
            self._keep()

    def _keep(self) -> None:
        if self._file is None:
            return
        labels = {name: asdict(known) for name, known in self._known.items()}
        with suppress(OSError), atomic_write(self._file, ".json") as partly:  # Where the folder cannot be written to.
            partly.write_text(json.dumps({"program": version("baps-monailabel"), "labels": labels}))


def _read(stamp: list[int], name: str, read: Callable[[str], LabelMap]) -> LabelCheck:
    try:
        label_map = read(name)
        if not label_map.foreground().any():
            raise InputError(f"The label of {name} is empty: no voxel is marked.")
        return LabelCheck(stamp, "", dict(label_map.names))
    except BapsError as error:
        return LabelCheck(stamp, str(error))


def _stamp(files: tuple[str, str]) -> list[int]:
    """What tells files from others of the same names; of a series the folder, which changes when a file is added."""
    stamp = []
    for file in files:
        try:
            found = os.stat(file)  # noqa: PTH116  # Of thousands of files; a Path takes longer than the call.
            stamp += [found.st_mtime_ns, found.st_size, found.st_ino]
        except OSError:
            stamp += [0, 0, 0]
    return stamp
