"""Landmark adapter: classify voxels by appearance and by position relative to the organs that the model finds.

Not from the FSEFT paper.
"""

from __future__ import annotations

import torch
from torch import nn

from baps.fseft.adapters.adapter import FewShotAdapter
from baps.fseft.adapters.organ_head import organ_head
from baps.fseft.models import FoundationModel

_WIDTH = 32
_SIMULATED_BODIES = 16
"""Number of simulated bodies that the voxels of a step are distributed over."""

_SIZE_STD, _POSITION_STD, _MISSING_RATE = 0.1, 0.1, 0.2
"""For each simulated body: standard deviation of its size as a share; standard deviation of each organ's position, dm;
share of organs that are missing."""


class LandmarkAdapter(FewShotAdapter):
    """Add the output of a small perceptron per voxel to the head of an organ; reads what ``add_landmarks`` returns.

    In training, bodies are scaled, organs are shifted, and some are missing, so that one volume is not memorised.
    Before training, the output for a class of the model is the model's own.

    Args:
        model: the foundation model; if it has no classes, the adapter reads appearance only.
        organ: the organ, see ``organ_head``.

    Attributes:
        input_kind: ``landmarks``.
    """

    input_kind = "landmarks"

    def __init__(self, model: FoundationModel, organ: str) -> None:
        super().__init__()
        self._appearance_channels, self._organs = model.channels + 1, len(model.classes)
        self.head = organ_head(model, organ)
        channels = 2 * self._appearance_channels + 3 * self._organs
        last = nn.Linear(_WIDTH, 1, bias=False)
        if model.index(organ) is not None:
            nn.init.zeros_(last.weight)
        self.perceptron = nn.Sequential(
            nn.Linear(channels, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, _WIDTH), nn.ReLU(), last
        )

    def augment(self, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Distribute voxels over simulated bodies.

        Args:
            inputs: (B, C, ...).
            generator: the source of randomness.

        Returns:
            (B, C, ...).
        """
        appearance, offsets = inputs.split([2 * self._appearance_channels, 3 * self._organs], 1)
        offsets = offsets.unflatten(1, (self._organs, 3))
        body = torch.randint(_SIMULATED_BODIES, inputs[:, 0].shape, generator=generator)

        def draw(*shape: int) -> torch.Tensor:
            # Draw values per body, and gather them by voxel: (B, organs, axes, ...).
            return (
                torch.randn(_SIMULATED_BODIES, *shape, generator=generator)[body].movedim((-2, -1), (1, 2)).to(offsets)
            )

        present = (
            torch.rand(_SIMULATED_BODIES, self._organs, 1, generator=generator)[body].movedim((-2, -1), (1, 2))
            > _MISSING_RATE
        )
        offsets = offsets * (1 + _SIZE_STD * draw(1, 3)) + _POSITION_STD * draw(self._organs, 3)
        return torch.cat([appearance, (offsets * present.to(offsets)).flatten(1, 2)], 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Classify each voxel independently.

        Args:
            inputs: (B, C, H, W, D).

        Returns:
            Logits, (B, 1, H, W, D).
        """
        correction = self.perceptron(inputs.movedim(1, -1)).movedim(-1, 1)
        logits: torch.Tensor = self.head(inputs[:, 1 : self._appearance_channels]) + correction
        return logits
