"""Losses of the optimisers, on the probabilities that the black box returns."""

from __future__ import annotations

import torch

_EPSILON = 1e-4


def image_losses(probability: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Compute soft Dice plus binary cross-entropy of each image.

    Args:
        probability: (B, H, W), 0 to 1.
        target: (B, H, W), 0 to 1.

    Returns:
        One loss per image, (B,).
    """
    overlap = (probability * target).sum((1, 2))
    dice = 1 - (2 * overlap + 1) / (probability.sum((1, 2)) + target.sum((1, 2)) + 1)
    return dice + _cross_entropy(probability, target).mean((1, 2))


def batch_dice_loss(probability: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Compute soft Dice over the batch, ``1 - (2 sum py + 1) / (sum p + sum y + 1)``.

    Args:
        probability: (B, H, W), 0 to 1.
        target: (B, H, W), 0 to 1.

    Returns:
        The loss of the batch, a scalar.
    """
    return 1 - (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)


def batch_loss(probability: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Compute the published loss: soft Dice over the batch plus cross-entropy.

    Args:
        probability: (B, H, W), 0 to 1.
        target: (B, H, W), 0 to 1.

    Returns:
        The loss of the batch, a scalar.
    """
    return batch_dice_loss(probability, target) + _cross_entropy(probability, target).mean()


def _cross_entropy(probability: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    p = probability.clamp(_EPSILON, 1 - _EPSILON)
    return -(target * p.log() + (1 - target) * (1 - p).log())
