"""A new image in a folder of studies: under a name that nothing else has, and there when it is whole."""

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

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.EACCES)
"""Errors of file systems that know no second name of a file."""

_VOLUME = re.compile(rf"(.+){VOLUME_INFIX}\d+")


def list_names(folder: Path) -> list[str]:
    """Return the names of all images and series in a folder, also of those that nobody has noticed yet."""
    return [file_stem(Path(entry.path)) for entry in os.scandir(folder) if not entry.name.startswith(".")]


def check_new_name(name: str, taken: Iterable[str]) -> None:
    """Refuse a name of an image that another one has, that some file systems take for another's, or that nobody sees.

    Raises:
        InputError: if it is one.
    """
    if name.startswith(".") or label_stem(Path(f"{name}.nrrd")) != name:
        raise InputError(f"The image cannot be called {name!r}: names do not begin with a dot or end in .seg.")
    same = _folded(name)
    for other in taken:
        if _folded(other) == same:
            raise InputError(f"There is an image {other!r} already, and its labels; give the new one another name.")
        if same in _whole_of(other) or _folded(other) in _whole_of(name):
            raise InputError(f"The name {name!r} may be that of a volume of {other!r}; give the new image another one.")


def _whole_of(name: str) -> tuple[str, ...]:
    """The name of the file or series that an image may be a volume of: such are called after it."""
    found = _VOLUME.fullmatch(_folded(name))
    return (found[1],) if found else ()


def _folded(name: str) -> str:
    """A name as a file system sees it that tells neither case nor composed letters apart."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


@contextmanager
def stage_new_file(folder: Path, suffix: str) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    """A hidden file to write to, and what gives it its name, once it is whole and on the disk.

    Args:
        folder: that it is added to.
        suffix: what the file's name ends in.

    Yields:
        The file and a function of its name-to-be, which raises a FileExistsError if there is such a file.
    """
    handle, name = tempfile.mkstemp(prefix=PARTIAL, suffix=suffix, dir=folder)
    os.close(handle)
    partial = Path(name)

    def add(target: Path) -> None:
        flush_to_disk(partial)
        try:
            os.link(partial, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            partial.replace(target)
        flush_to_disk(folder)

    try:
        yield partial, add
    finally:
        partial.unlink(missing_ok=True)
