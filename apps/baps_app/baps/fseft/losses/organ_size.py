"""Penalise implausible sizes of an organ in unlabelled volumes (Silva-Rodriguez et al.).

Constrained transductive inference: the support volumes give the expected size, and predictions of another size on the
unlabelled volume are penalised.
"""

from __future__ import annotations

import torch


def soft_size(probability: torch.Tensor) -> torch.Tensor:
    """Sum probabilities to a size in voxels.

    Args:
        probability: of any shape.

    Returns:
        The size, a scalar.
    """
    return probability.sum()


def size_penalty(size: torch.Tensor, expected: float, margin: float = 0.3) -> torch.Tensor:
    """Compute how far a size S' lies outside (1-g)S to (1+g)S, as a share of the larger of S and S'.

    The range is the paper's. Its authors' code divides by the larger size too, as a constant, so that small organs
    count as much as large ones, and a mask that fills the volume does not outweigh the Dice.

    Args:
        size: S', of any shape.
        expected: S, in the same unit, above 0.
        margin: g.

    Returns:
        The penalty, of the same shape; 0 inside the range.
    """
    too_small, too_large = (1 - margin) * expected - size, size - (1 + margin) * expected
    return (torch.relu(too_small) + torch.relu(too_large)) / size.detach().clamp(min=expected)
