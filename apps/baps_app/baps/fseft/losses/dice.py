"""Soft Dice of one organ (Milletari et al., *V-Net*, 3DV 2016)."""

from __future__ import annotations

import torch


def dice_loss(probability: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Compute ``1 - (2 sum py + 1) / (sum p + sum y + 1)`` over all weighted voxels of a batch.

    It is computed over the batch, not as the mean over its images, because a crop without the organ is uninformative
    alone.

    Args:
        probability: of any shape.
        target: 0 or 1, of the same shape.
        weights: number of voxels that each one represents, of the same shape or one that broadcasts to it; 0 where the
            target is unknown, so that slices that were not annotated are ignored. None for 1 everywhere.

    Returns:
        The loss, a scalar.
    """
    both = probability * target
    if weights is not None:
        both, probability, target = both * weights, probability * weights, target * weights
    return 1 - (2 * both.sum() + 1) / (probability.sum() + target.sum() + 1)
