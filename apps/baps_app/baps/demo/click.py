"""A click of the demo, and the masks that it gave."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from baps.imaging.canvas import Plane
from baps.imaging.metrics import dice
from baps.prompts import Prompt


@dataclass
class DemoClick:
    """A click on a slice of an unlabelled volume.

    Attributes:
        case: Name of the volume.
        plane: The slice.
        prompt: The click, (X, Y) in pixels of the slice.
        target: Mask of the organ on the slice, (H, W).
        masks: Masks of the models, (H, W), by the name of the model.
    """

    case: str
    plane: Plane
    prompt: Prompt
    target: NDArray[np.bool_]
    masks: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    def dice(self, model: str) -> float:
        """Compute the Dice of the mask of a model."""
        return dice(self.masks[model], self.target)
