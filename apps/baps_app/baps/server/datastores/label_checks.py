"""Check whether the labels of a folder of studies can be read on their images. Each is read once per change."""

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

_TIMEOUT = 1.0
"""Seconds for which a call reads labels that were not checked yet. The next call continues."""


@dataclass(frozen=True)
class LabelCheck:
    """The result of reading a label.

    Attributes:
        stamp: Identifies the files of the label and the image when they were read.
        error: Why the label cannot be used, or "".
        names: Names of its segments by value, if the file has them.
    """

    stamp: list[int]
    error: str = ""
    names: dict[int, str] = field(default_factory=dict)


class LabelChecks:
    """The results of reading each label, saved to disk if possible. Only a file that changed is read again.

    One thread at a time reads labels. Other threads do not wait: they get the known results.

    Args:
        folder: Folder of the studies.
        read_only: Whether the results are not saved.
    """

    def __init__(self, folder: Path, read_only: bool = False) -> None:
        self._file = None if read_only else folder / FILE
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._checks: dict[str, LabelCheck] = {}
        # Results of another version of the program may be outdated, and a broken file is replaced.
        with suppress(OSError, ValueError, TypeError, AttributeError, KeyError):
            content = json.loads((folder / FILE).read_text())
            if content["program"] == version("baps-monailabel"):
                for image_id, check in content["labels"].items():
                    names = {int(value): str(name) for value, name in check["names"].items()}
                    self._checks[image_id] = LabelCheck(check["stamp"], check["error"], names)

    def check(
        self,
        files: Mapping[str, tuple[str, str]],
        read: Callable[[str], LabelMap],
        timeout: float = _TIMEOUT,
    ) -> dict[str, LabelCheck]:
        """Check labels.

        Args:
            files: Files of the label and of the image, by the name of the image.
            read: Reads the label of an image.
            timeout: Seconds after which no further label is read; infinite to read all of them.

        Returns:
            Results by the name of the image. Labels that were not read yet are missing.
        """
        results, changed = {}, {}
        with self._lock:
            for image_id, pair in files.items():
                stamp, known = _stamp(pair), self._checks.get(image_id)
                if known is None or known.stamp != stamp:
                    changed[image_id] = stamp
                else:
                    results[image_id] = known
        if changed and self._reading.acquire(blocking=timeout == math.inf):
            try:
                results |= self._read_changed(changed, read, timeout)
            finally:
                self._reading.release()
        return {image_id: results[image_id] for image_id in files if image_id in results}

    def _read_changed(
        self, changed: Mapping[str, list[int]], read: Callable[[str], LabelMap], timeout: float
    ) -> dict[str, LabelCheck]:
        """Read labels until the timeout, except those that another thread has read meanwhile."""
        results, end = {}, time.monotonic() + timeout
        for image_id, stamp in changed.items():
            check = self._checks.get(image_id)
            if check is None or check.stamp != stamp:
                if time.monotonic() > end:
                    continue
                check = _read(stamp, image_id, read)
                with self._lock:
                    self._checks[image_id] = check
            results[image_id] = check
        with self._lock:
            self._save()
        return results

    def add(self, image_id: str, files: tuple[str, str], names: Mapping[int, str]) -> None:
        """Add a label that was just read and can be used.

        Args:
            image_id: Name of the image.
            files: Files of the label and of the image.
            names: Names of its segments by value, if the file has them.
        """
        with self._lock:
            self._checks[image_id] = LabelCheck(_stamp(files), "", dict(names))
            self._save()

    def _save(self) -> None:
        if self._file is None:
            return
        labels = {image_id: asdict(check) for image_id, check in self._checks.items()}
        with suppress(OSError), atomic_write(self._file, ".json") as partial:  # The folder may not be writable.
            partial.write_text(json.dumps({"program": version("baps-monailabel"), "labels": labels}))


def _read(stamp: list[int], image_id: str, read: Callable[[str], LabelMap]) -> LabelCheck:
    try:
        label_map = read(image_id)
        if not label_map.foreground().any():
            raise InputError(f"The label of {image_id} is empty: no voxel is marked.")
        return LabelCheck(stamp, "", dict(label_map.names))
    except BapsError as error:
        return LabelCheck(stamp, str(error))


def _stamp(files: tuple[str, str]) -> list[int]:
    """Return time, size and inode of files, which differ between files of one name. A series has those of its folder.

    They change when a file is added to the folder.
    """
    stamp = []
    for file in files:
        try:
            status = os.stat(file)  # noqa: PTH116  # There may be thousands, and a Path takes longer than the call.
            stamp += [status.st_mtime_ns, status.st_size, status.st_ino]
        except OSError:
            stamp += [0, 0, 0]
    return stamp
