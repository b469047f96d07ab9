"""Add an image to a folder of studies: under a name that is not in use, and visible only when it is complete."""

from __future__ import annotations

import errno
import os
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from baps.errors import InputError
from baps.io import VOLUME_INFIX, file_stem, label_stem
from baps.utils.atomic_write import PARTIAL, flush_to_disk

_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.EACCES)
"""Errors of file systems without hard links."""

_VOLUME_NAME = re.compile(rf"(.+){VOLUME_INFIX}\d+")


def list_names(folder: Path) -> list[str]:
    """Return the names of all images and series in a folder, including those that are not in the datastore yet.

    Args:
        folder: Folder of the images.
    """
    return [file_stem(Path(entry.path)) for entry in os.scandir(folder) if not entry.name.startswith(".")]


def check_new_name(name: str, used: Iterable[str]) -> None:
    """Refuse a name for a new image if it is hidden, in use, or the same as a used name on some file systems.

    Args:
        name: Name of the new image.
        used: Names of the other images.

    Raises:
        InputError: if the name cannot be used.
    """
    if name.startswith(".") or label_stem(Path(f"{name}.nrrd")) != name:
        raise InputError(f"The image cannot be called {name!r}: names do not begin with a dot or end in .seg.")
    folded = _fold(name)
    for other in used:
        if _fold(other) == folded:
            raise InputError(f"There is an image {other!r} already, and its labels; give the new one another name.")
        if folded == _series_name(other) or _fold(other) == _series_name(name):
            raise InputError(f"The name {name!r} may be that of a volume of {other!r}; give the new image another one.")


def _series_name(name: str) -> str | None:
    """Return the name of the file or series if an image is named like one of its volumes, else None."""
    match = _VOLUME_NAME.fullmatch(_fold(name))
    return match[1] if match else None


def _fold(name: str) -> str:
    """Return a name as a file system sees it that ignores case and the Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


@contextmanager
def stage_new_file(folder: Path, suffix: str) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    """Yield a hidden file to write to, and a function that gives it its name once it is complete.

    Args:
        folder: Folder to which the file is added.
        suffix: Suffix of the file's name.

    Yields:
        The hidden file, and a function that takes its final path. The function flushes the file to the disk first, and
        raises a FileExistsError if there is such a file.
    """
    handle, name = tempfile.mkstemp(prefix=PARTIAL, suffix=suffix, dir=folder)
    os.close(handle)
    partial = Path(name)

    def publish(target: Path) -> None:
        flush_to_disk(partial)
        try:
            os.link(partial, target)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            partial.replace(target)
        flush_to_disk(folder)

    try:
        yield partial, publish
    finally:
        partial.unlink(missing_ok=True)
