"""One click of the demo and everything that came back."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from baps.imaging.canvas import Plane
from baps.imaging.metrics import dice
from baps.prompts import Prompt


@dataclass
class Question:
    """One click on a slice of an unlabelled volume, and what came back."""

    case: str
    plane: Plane
    prompt: Prompt
    truth: NDArray[np.bool_]
    masks: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    def dice(self, arm: str) -> float:
        return dice(self.masks[arm], self.truth)
