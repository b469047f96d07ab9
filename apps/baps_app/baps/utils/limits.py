"""How large a volume becomes when it is unpacked, found before it is: a small file may hold gigabytes of zeros."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from baps.errors import InputError
from baps.utils.deprecation import warn_of_old_name

VARIABLE = "BAPS_MAX_VOLUME_MB"
"""Variable that the server sets for itself and its trainings, so that every reader knows the limit."""

OLD_VARIABLE = "BAPS_MOST_VOLUME_MB"
"""Its name in version 0.1."""

DEFAULT_MAX_VOLUME_MB = 8192
"""Limit where none is set. A CT of 1024 x 1024 x 2000 voxels has 4000 MB."""


def check_size(name: str, shape: Sequence[int], itemsize: int) -> int:
    """Refuse a volume that is larger than is allowed.

    Args:
        name: of the file, for the sentence.
        shape: of its voxels, channels included.
        itemsize: bytes of each.

    Returns:
        Its bytes.

    Raises:
        InputError: if it has more than ``max_volume_mb``, or sizes below 0.
    """
    most = max_volume_bytes()
    sizes = [int(size) for size in shape]
    said, total = " x ".join(map(str, sizes)), math.prod(sizes) * itemsize
    if any(size < 0 for size in sizes):
        raise InputError(f"{name} has sizes below 0 ({said}). It is broken; export it again.")
    if total > most:
        raise InputError(
            f"{name} unpacks to {total / 2**20:,.0f} MB ({said} voxels); {most >> 20:,} MB are allowed. Crop it, or "
            "have the server's operator raise max_volume_mb."
        )
    return total


def max_volume_bytes() -> int:
    """Return how many bytes a volume may have when it is unpacked.

    Raises:
        InputError: if the variable is not a whole number.
    """
    most = os.environ.get(VARIABLE)
    if not most and (most := os.environ.get(OLD_VARIABLE)):
        warn_of_old_name(OLD_VARIABLE, VARIABLE, "in the environment")
    most = most or str(DEFAULT_MAX_VOLUME_MB)
    if not most.isdecimal():
        raise InputError(f"max_volume_mb must be a whole number of megabytes, not {most!r}.")
    return int(most) << 20
