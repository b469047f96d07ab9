"""Files that hold secrets: only their owner may read them."""

from __future__ import annotations

from pathlib import Path

from baps.errors import InputError


def read_private(file: Path, what: str) -> bytes:
    """The content of a private file.

    Args:
        file: which must not be open to others.
        what: it is, for the sentence: ``The login of the PACS``.

    Raises:
        InputError: if it cannot be read, or others may read or change it.
    """
    try:
        if file.stat().st_mode & 0o077:
            raise InputError(f"Others may read {file}, which holds secrets. Take their leave: chmod 600 {file}")
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{what} cannot be read from {file}: {error.strerror}.") from error
