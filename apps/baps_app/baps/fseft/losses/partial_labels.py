"""Dice over many organs of which each volume has only some labelled: the loss that foundation models are trained with.

Data sets label different organs, and an organ that a data set does not label is not background in its volumes
(Silva-Rodriguez et al.).
"""

from __future__ import annotations

import torch

from baps.errors import InputError
from baps.fseft.losses.dice import dice_loss


def partial_dice_loss(probability: torch.Tensor, target: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    """Compute the mean ``dice_loss`` of the organs that are labelled in at least one volume, each over those volumes.

    Args:
        probability: (B, K, H, W, D).
        target: 0 or 1, (B, K, H, W, D).
        labelled: (B, K) bool, whether an organ is labelled in a volume.

    Returns:
        The loss, a scalar.

    Raises:
        InputError: if nothing is labelled.
    """
    if not labelled.any():
        raise InputError("No volume of the batch has a labelled organ. Omit volumes without labels.")
    return torch.stack(
        [
            dice_loss(probability[labelled[:, k], k], target[labelled[:, k], k])
            for k in labelled.any(0).nonzero()[:, 0].tolist()
        ]
    ).mean()
