"""What is known of an organ without a label: about how large it is (Silva-Rodriguez et al.).

Constrained transductive inference: the support volumes tell the size, and on the query volume itself predictions of
another size are penalised.
"""

from __future__ import annotations

import torch


def soft_size(probability: torch.Tensor) -> torch.Tensor:
    """Sum of probabilities, voxels."""
    return probability.sum()


def size_penalty(size: torch.Tensor, expected: float, margin: float = 0.3) -> torch.Tensor:
    """How far a size S' lies outside of (1-g)S to (1+g)S, as a share of S; 0 within.

    The paper's penalty divided by S, so that its weight beside the Dice means the same for small and large organs.

    Args:
        size: S', of any shape.
        expected: S, in the same unit, above 0.
        margin: g.
    """
    share = size / expected
    return torch.relu(1 - margin - share) + torch.relu(share - 1 - margin)
