"""Losses: one minus the overlap with the labels, and penalties on implausible sizes of an organ."""

from __future__ import annotations

from baps.fseft.losses.dice import dice_loss
from baps.fseft.losses.organ_size import size_penalty, soft_size
from baps.fseft.losses.partial_labels import partial_dice_loss

__all__ = ["dice_loss", "partial_dice_loss", "size_penalty", "soft_size"]
