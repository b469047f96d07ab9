"""Dice over many organs of which each volume has only some labelled: how the foundation models are trained.

Silva-Rodriguez et al.: data sets name different organs, and one that a data set does not name is not
background in its volumes.
"""

from __future__ import annotations

import torch

from baps.errors import InputError
from baps.fseft.losses.dice import dice_loss


def partial_dice_loss(probability: torch.Tensor, truth: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Mean ``dice_loss`` of the organs that are labelled in at least one volume of the batch, each over those volumes.

    Args:
        probability: (B, K, H, W, D).
        truth: 0 or 1, likewise.
        known: (B, K) bool, whether an organ is labelled in a volume.

    Raises:
        InputError: if nothing is labelled.
    """
    if not known.any():
        raise InputError("No volume of the batch has a labelled organ. Leave out volumes that nobody has labelled.")
    return torch.stack(
        [dice_loss(probability[known[:, k], k], truth[known[:, k], k]) for k in known.any(0).nonzero()[:, 0].tolist()]
    ).mean()
