"""How large a volume becomes when it is unpacked, found before it is: a small file may hold gigabytes of zeros."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from baps.errors import InputError

VARIABLE = "BAPS_MOST_VOLUME_MB"
"""What the server sets for itself and its trainings, so that every reader knows it."""

MOST_MB = 8192
"""Where nothing else is said. A CT of 1024 x 1024 x 2000 voxels has 4000."""


def check_size(name: str, shape: Sequence[int], itemsize: int) -> int:
    """Refuse a volume that is larger than is allowed.

    Args:
        name: of the file, for the sentence.
        shape: of its voxels, channels included.
        itemsize: bytes of each.

    Returns:
        Its bytes.

    Raises:
        InputError: if it has more than ``most_volume_mb``, or sizes below 0.
    """
    most = max_volume_bytes()
    sizes = [int(size) for size in shape]
    said, total = " x ".join(map(str, sizes)), math.prod(sizes) * itemsize
    if any(size < 0 for size in sizes):
        raise InputError(f"{name} has sizes below 0 ({said}). It is broken; export it again.")
    if total > most:
        raise InputError(
            f"{name} unpacks to {total / 2**20:,.0f} MB ({said} voxels); {most >> 20:,} MB are allowed. Crop it, or "
            "have the server's operator raise most_volume_mb."
        )
    return total


def max_volume_bytes() -> int:
    """Return how many bytes a volume may have when it is unpacked.

    Raises:
        InputError: if the environment says something else than a number.
    """
    most = os.environ.get(VARIABLE) or str(MOST_MB)
    if not most.isdecimal():
        raise InputError(f"most_volume_mb must be a whole number of megabytes, not {most!r}.")
    return int(most) << 20
