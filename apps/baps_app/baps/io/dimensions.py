"""Voxels of three dimensions out of files that may hold more, or two."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from baps.errors import InputError


def three_dimensional(voxels: NDArray[np.generic], name: str) -> NDArray[np.generic]:
    """Voxels (I, J, K, 1, ...) without their trailing dimensions of one, (I, J, K); (I, J) as one slice, (I, J, 1).

    Raises:
        InputError: if other than three dimensions are left; it names the file.
    """
    if voxels.ndim == 2:
        return voxels[:, :, None]
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim != 3:
        raise InputError(
            f"{name} has {voxels.ndim} dimensions (shape {voxels.shape}); a volume has three. "
            "Export one time point or one channel alone."
        )
    return voxels
