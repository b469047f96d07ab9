"""Convert the voxels of files with other than three dimensions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from baps.errors import InputError


def to_three_dimensions(voxels: NDArray[np.generic], name: str) -> NDArray[np.generic]:
    """Convert voxels to three dimensions.

    Trailing dimensions of size one are dropped; two dimensions become one slice.

    Args:
        voxels: voxels, (I, J), (I, J, K) or (I, J, K, 1, ...).
        name: name of the file, for the error message.

    Returns:
        The voxels, (I, J, K).

    Raises:
        InputError: if the voxels have another number of dimensions.
    """
    if voxels.ndim == 2:
        return voxels[:, :, None]
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim != 3:
        raise InputError(
            f"{name} has {voxels.ndim} dimensions (shape {voxels.shape}); a volume has three. "
            "Export a single time point or channel."
        )
    return voxels
