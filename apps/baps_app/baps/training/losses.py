"""Losses that the optimisers read, on probabilities that came back from the black box."""

from __future__ import annotations

import torch

_SMALL = 1e-4


def image_losses(probability: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Soft Dice plus binary cross-entropy of each image: (B, H, W) and (B, H, W) to (B,)."""
    overlap = (probability * truth).sum((1, 2))
    dice = 1 - (2 * overlap + 1) / (probability.sum((1, 2)) + truth.sum((1, 2)) + 1)
    return dice + _entropy(probability, truth).mean((1, 2))


def batch_loss(probability: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """As published: soft Dice over the batch, ``1 - (2 sum py + 1) / (sum p + sum y + 1)``, plus cross-entropy."""
    dice = 1 - (2 * (probability * truth).sum() + 1) / (probability.sum() + truth.sum() + 1)
    return dice + _entropy(probability, truth).mean()


def _entropy(probability: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    p = probability.clamp(_SMALL, 1 - _SMALL)
    return -(truth * p.log() + (1 - truth) * (1 - p).log())
