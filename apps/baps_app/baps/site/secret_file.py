"""Files that hold secrets: only their owner may read them."""

from __future__ import annotations

from pathlib import Path

from baps.errors import InputError


def read_private(file: Path, what: str) -> bytes:
    """Read a private file.

    Args:
        file: The file, which nobody but its owner may read or change.
        what: The content, for the message, as in ``The PACS credentials``.

    Returns:
        The content of the file.

    Raises:
        InputError: If it cannot be read, or others may read or change it.
    """
    try:
        if file.stat().st_mode & 0o077:
            raise InputError(f"Other users can read {file}, which holds secrets. Restrict it: chmod 600 {file}")
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{what} cannot be read from {file}: {error.strerror}.") from error
