"""Convert images of other than three dimensions, such as slices and colour, to volumes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

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


def stack_colour(channels: Iterable[NDArray[Any]], name: str) -> NDArray[Any]:
    """Stack red, green and blue along a new last axis.

    Args:
        channels: the channels, see ``to_three_dimensions``.
        name: name of the file, for the error message.

    Returns:
        The voxels, (I, J, K, 3).

    Raises:
        InputError: see ``to_three_dimensions``.
    """
    return np.stack([to_three_dimensions(channel, name) for channel in channels], axis=-1)


def slice_normal(i: NDArray[np.floating[Any]], j: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Compute the step across a slice whose thickness is not stored: 1 mm along its normal.

    Args:
        i: step along I in mm, (3,).
        j: step along J in mm, (3,).

    Returns:
        The step along K in mm, (3,), or zero if I and J are parallel.
    """
    normal = np.cross(i, j)
    return normal / (np.linalg.norm(normal) or 1)
