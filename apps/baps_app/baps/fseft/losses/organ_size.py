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
    """Compute how far a size S' lies outside (1-g)S to (1+g)S, as a share of S.

    This is the paper's penalty divided by S, so that its weight relative to the Dice is the same for small and large
    organs.

    Args:
        size: S', of any shape.
        expected: S, in the same unit, above 0.
        margin: g.

    Returns:
        The penalty, of the same shape; 0 inside the range.
    """
    share = size / expected
    return torch.relu(1 - margin - share) + torch.relu(share - 1 - margin)
