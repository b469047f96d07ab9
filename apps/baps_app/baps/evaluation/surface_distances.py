"""Compute distances between the surfaces of two masks."""

from __future__ import annotations

import math

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from numpy.typing import NDArray


def surface_distances(
    mask: NDArray[np.bool_], target: NDArray[np.bool_], spacing: NDArray[np.float64]
) -> tuple[float, float]:
    """Compute surface distances with MONAI's metrics.

    Args:
        mask: (I, J, K).
        target: (I, J, K). If both are empty, the distances are 0; if one is, infinite.
        spacing: size of a voxel along I, J and K, (3,), mm.

    Returns:
        The 95th percentile of the Hausdorff distance, and the average symmetric surface distance, mm.
    """
    if not mask.any() or not target.any():
        return (0.0, 0.0) if mask.any() == target.any() else (math.inf, math.inf)
    either = np.nonzero(mask | target)
    box = tuple(slice(axis.min(), axis.max() + 1) for axis in either)
    first, second = (np.pad(surface_mask[box], 1)[None, None] for surface_mask in (mask, target))
    pair = torch.from_numpy(first).float(), torch.from_numpy(second).float()
    sizes = spacing.tolist()
    hd95 = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=sizes)
    surface = compute_average_surface_distance(*pair, include_background=True, symmetric=True, spacing=sizes)
    return float(hd95), float(surface)
