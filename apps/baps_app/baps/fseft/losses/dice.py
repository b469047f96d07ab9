"""Soft Dice of one organ (Milletari et al., *V-Net*, 3DV 2016)."""

from __future__ import annotations

import torch


def dice_loss(probability: torch.Tensor, truth: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """``1 - (2 sum py + 1) / (sum p + sum y + 1)`` over all voxels of a batch, each as often as it counts.

    Over the batch, not the mean of its images: a crop without the organ tells nothing alone.

    Args:
        probability: of any shape.
        truth: 0 or 1, of the same shape.
        weights: how many voxels each stands for, of the same shape or one that broadcasts to it; 0 where the truth is
            not known: slices that nobody has labelled count neither way. None for 1 everywhere.
    """
    both = probability * truth
    if weights is not None:
        both, probability, truth = both * weights, probability * weights, truth * weights
    return 1 - (2 * both.sum() + 1) / (probability.sum() + truth.sum() + 1)
