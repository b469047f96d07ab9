"""Soft Dice of one organ (Milletari et al., *V-Net*, 3DV 2016)."""

from __future__ import annotations

import torch


def dice_loss(probability: torch.Tensor, truth: torch.Tensor, labelled: torch.Tensor | None = None) -> torch.Tensor:
    """``1 - (2 sum py + 1) / (sum p + sum y + 1)`` over all voxels of a batch that someone has labelled.

    Over the batch, not the mean of its images: a crop without the organ tells nothing alone.

    Args:
        probability: of any shape.
        truth: 0 or 1, of the same shape.
        labelled: 1 or True where the truth is known, of the same shape or one that broadcasts to it; None for
            everywhere. Slices that nobody has labelled count neither way.
    """
    if labelled is not None:
        probability, truth = probability * labelled, truth * labelled
    return 1 - (2 * (probability * truth).sum() + 1) / (probability.sum() + truth.sum() + 1)
