"""A file that is replaced when the new one is whole: a reader sees the old or the new one, never a part."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial-"
"""What the name of a file begins with until it is whole."""


@contextmanager
def atomic_write(target: Path, suffix: str = "", mode: int = 0o666) -> Iterator[Path]:
    """A path beside the target to write to; it becomes the target when all went well, and is gone when not.

    Its name is hidden, and nobody else's: of two who write at once, the last one's file is kept, whole. What became the
    target is on the disk, and outlasts a power cut.

    Args:
        target: the file, which need not be there; its folder must.
        suffix: what the path ends in, where a library tells the format by it.
        mode: who may read and write the file, but for those whom the umask keeps out.

    Raises:
        OSError: if the folder cannot be written to, say; the target is as it was.
    """
    partial = target.parent / f"{PARTIAL}{secrets.token_hex(8)}{suffix}"
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))
    try:
        yield partial
        to_disk(partial)
        os.replace(partial, target)
        to_disk(target.parent)
    except BaseException:
        with suppress(OSError):  # The first error says more.
            partial.unlink()
        raise


def to_disk(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder.

    Raises:
        OSError: if it cannot take them.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
