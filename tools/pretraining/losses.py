"""The loss of a pre-training: soft Dice and cross-entropy."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def mask_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Compute soft Dice + 2 x binary cross-entropy of each mask.

    Args:
        logits: predictions, (..., H, W).
        targets: true masks, 0 or 1, (..., H, W).

    Returns:
        Losses, (...).
    """
    probability = logits.sigmoid()
    overlap = (probability * targets).sum((-2, -1))
    dice = 1 - (2 * overlap + 1) / (probability.sum((-2, -1)) + targets.sum((-2, -1)) + 1)
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean((-2, -1))
    return dice + 2 * entropy
