"""The settings of a fit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from baps.errors import InputError


@dataclass(frozen=True)
class FitSettings:
    """Settings as published (Silva-Rodriguez et al.), except where they are marked as ours.

    Attributes:
        learning_rate: initial learning rate, see ``Method.rate``; it falls to 0 along a cosine.
        epochs: maximum number of epochs.
        crop: side of the training cubes, voxels; a volume that is shorter is taken whole. 0 for whole volumes.
        crops: number of cubes per step, all of one volume, half of them around the organ. With a single cube, a step
            without the organ drives all outputs to zero, from which a soft Dice does not recover.
        points: number of voxels that are drawn instead of cubes, see ``PointSampler``; 0 for cubes. Not from
            the FSEFT paper.
        steps: number of steps per volume and epoch. Not from the FSEFT paper.
        margin: margin of the penalty on sizes, see ``size_penalty``.
        weight: weight of the penalty on sizes.
        seed: seed of everything random.

    Raises:
        InputError: if a value is out of range.
    """

    learning_rate: float
    epochs: int = 200
    crop: int = 96
    crops: int = 6
    points: int = 0
    steps: int = 1
    margin: float = 0.3
    weight: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate must be a positive number, not {self.learning_rate}.")
        for name in ("epochs", "crops", "steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("crop", "points", "margin", "weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be 0 or more, not {getattr(self, name)}.")
