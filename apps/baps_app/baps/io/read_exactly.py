"""Reading as many bytes as were checked, and no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Readable(Protocol):
    """A file, packed or not."""

    def read(self, size: int, /) -> bytes:
        """Read as many bytes, or what is left."""
        ...


_PIECE = 1 << 20
"""Bytes that are unpacked at once."""


def read_exactly(file: Readable, shape: Sequence[int], dtype: DTypeLike, order: Literal["C", "F"]) -> NDArray[Any]:
    """Read an array piece by piece, so that it lies in memory once however it is packed.

    Args:
        file: whose next bytes it is.
        shape: of the array.
        dtype: of its values.
        order: in which they follow each other.

    Raises:
        ValueError: if the file ends before.
    """
    array: NDArray[Any] = np.empty(tuple(shape), dtype, order)
    if not array.size:
        return array
    room = array.reshape(-1, order="A").view(np.uint8).data
    filled = 0
    while filled < len(room):
        piece = file.read(min(_PIECE, len(room) - filled))
        if not piece:
            raise ValueError(f"it holds fewer voxels than its header says ({filled} bytes of {len(room)})")
        room[filled : filled + len(piece)] = piece
        filled += len(piece)
    return array
