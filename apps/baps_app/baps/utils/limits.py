"""Check how large a volume is before it is unpacked: a small file may hold gigabytes of zeros."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from baps.errors import InputError
from baps.utils.deprecation import warn_of_old_name

MAX_VOLUME_MB_VARIABLE = "BAPS_MAX_VOLUME_MB"
"""Environment variable that the server sets for itself and its training processes, so that every reader knows the
limit."""

OLD_VARIABLE = "BAPS_MOST_VOLUME_MB"
"""Its name in version 0.1."""

DEFAULT_MAX_VOLUME_MB = 8192
"""Default limit in MB. For comparison, a CT of 1024 x 1024 x 2000 voxels has 4000 MB."""


def check_size(name: str, shape: Sequence[int], itemsize: int) -> int:
    """Refuse a volume that is larger than the limit.

    Args:
        name: name of the file, for the error message.
        shape: numbers of voxels along each axis, channels included.
        itemsize: bytes per voxel.

    Returns:
        Size of the volume in bytes.

    Raises:
        InputError: if the volume is larger than the limit, or a size is negative.
    """
    limit = max_volume_bytes()
    sizes = [int(size) for size in shape]
    size_text, total = " x ".join(map(str, sizes)), math.prod(sizes) * itemsize
    if any(size < 0 for size in sizes):
        raise InputError(f"{name} has sizes below 0 ({size_text}). It is broken; export it again.")
    if total > limit:
        raise InputError(
            f"{name} unpacks to {total / 2**20:,.0f} MB ({size_text} voxels); {limit >> 20:,} MB are allowed. "
            "Crop it, or have the server's operator raise max_volume_mb."
        )
    return total


def max_volume_bytes() -> int:
    """Return the limit on the size of an unpacked volume.

    Returns:
        The limit in bytes.

    Raises:
        InputError: if the environment variable is not a whole number.
    """
    megabytes = os.environ.get(MAX_VOLUME_MB_VARIABLE)
    if not megabytes and (megabytes := os.environ.get(OLD_VARIABLE)):
        warn_of_old_name(OLD_VARIABLE, MAX_VOLUME_MB_VARIABLE, "in the environment")
    megabytes = megabytes or str(DEFAULT_MAX_VOLUME_MB)
    if not megabytes.isdecimal():
        raise InputError(f"max_volume_mb must be a whole number of megabytes, not {megabytes!r}.")
    return int(megabytes) << 20
