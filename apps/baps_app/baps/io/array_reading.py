"""Read an array of a known size from a file, and no more bytes than that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Readable(Protocol):
    """A file, compressed or not."""

    def read(self, size: int, /) -> bytes:
        """Read bytes.

        Args:
            size: number of bytes.

        Returns:
            The bytes; fewer if the file ends.
        """
        ...


_CHUNK_BYTES = 1 << 20
"""Number of bytes that are decompressed at once."""


def read_array(file: Readable, shape: Sequence[int], dtype: DTypeLike, order: Literal["C", "F"]) -> NDArray[Any]:
    """Read an array in chunks, so that it is in memory only once, however it is compressed.

    Args:
        file: file, at the first byte of the array.
        shape: shape of the array.
        dtype: type of its values.
        order: ``C`` if the last axis varies fastest, ``F`` if the first one does.

    Returns:
        The array.

    Raises:
        ValueError: if the file ends before the array does.
    """
    array: NDArray[Any] = np.empty(tuple(shape), dtype, order)
    if not array.size:
        return array
    buffer = array.reshape(-1, order="A").view(np.uint8).data
    filled = 0
    while filled < len(buffer):
        chunk = file.read(min(_CHUNK_BYTES, len(buffer) - filled))
        if not chunk:
            raise ValueError(f"it holds fewer voxels than its header says ({filled} bytes of {len(buffer)})")
        buffer[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    return array
