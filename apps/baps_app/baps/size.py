"""How large a volume becomes when it is unpacked, found before it is: a small file may hold gigabytes of zeros."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .errors import InputError

MOST_BYTES = 8192 << 20
"""Of a volume in memory, where nothing else is said. A CT of 1024 x 1024 x 2000 voxels has 4000 MiB."""


def check_size(name: str, shape: Sequence[int], itemsize: int, most: int) -> None:
    """Refuse a volume that would not fit.

    Args:
        name: of the file, for the sentence.
        shape: of its voxels, channels included.
        itemsize: bytes of each.
        most: bytes that it may have.

    Raises:
        InputError: if it has more, or sizes below 0.
    """
    if any(size < 0 for size in shape):
        raise InputError(f"{name} has sizes below 0 ({' x '.join(map(str, shape))}). It is broken; export it again.")
    size = math.prod(int(size) for size in shape) * itemsize
    if size > most:
        raise InputError(
            f"{name} unpacks to {size / 2**20:,.0f} MB ({' x '.join(map(str, shape))} voxels); {most >> 20:,} MB are "
            "allowed. Crop it, or have the server's operator raise most_volume_mb."
        )
