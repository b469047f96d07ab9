"""Replace a file atomically: a reader sees the old file or the new one, never a part of it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial-"
"""Prefix of the hidden file that is being written."""


@contextmanager
def atomic_write(target: Path, suffix: str = "", mode: int = 0o666) -> Iterator[Path]:
    """Write to a hidden file beside the target, and move it to the target when the block succeeds.

    If the block fails, the hidden file is deleted and the target stays as it was. Its name is random, so concurrent
    writers do not share it: the last one to finish wins, with a complete file. The new target is flushed to the disk,
    so it survives a power cut.

    Args:
        target: path of the file. The file may be missing; its folder must exist.
        suffix: suffix of the hidden file, for libraries that derive the format from it.
        mode: permissions of the file, before the umask is applied.

    Yields:
        Path of the hidden file, which is empty.

    Raises:
        OSError: if the folder or the file cannot be written to. The target stays as it was.
    """
    partial = target.parent / f"{PARTIAL}{secrets.token_hex(8)}{suffix}"
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))
    try:
        yield partial
        flush_to_disk(partial)
        os.replace(partial, target)
        flush_to_disk(target.parent)
    except BaseException:
        with suppress(OSError):  # The original error is more useful.
            partial.unlink()
        raise


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is stored on the disk.

    Args:
        path: path of the file or the folder.

    Raises:
        OSError: if the disk cannot store it.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
