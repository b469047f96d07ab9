"""Settings of a fit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from baps.errors import InputError


@dataclass(frozen=True)
class FitSettings:
    """As published (Silva-Rodriguez et al.), but for what is said to be ours.

    Attributes:
        learning_rate: Learning rate to begin with, see ``Method.rate``; it falls to 0 along a cosine.
        epochs: at the most.
        crop: sides of the cubes that are trained on, voxels; where a volume is shorter, all of it. 0 for whole volumes.
        crops: how many cubes a step has, all of one volume. With one only, a step without the organ drives every
            answer to nothing, and a soft Dice does not come back from there.
        points: voxels that are drawn instead of cubes, see ``Points``; 0 for cubes. Ours.
        steps: of each volume and epoch. Ours.
        margin, weight: of the penalty on sizes, see ``size_penalty``.
        seed: of all that is random.

    Raises:
        InputError: on a value out of range.
    """

    learning_rate: float
    epochs: int = 200
    crop: int = 96
    crops: int = 2
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
                raise InputError(f"{name} must not be negative, it is {getattr(self, name)}.")
