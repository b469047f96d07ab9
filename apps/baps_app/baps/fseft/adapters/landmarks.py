"""Landmark adapter: an organ is told by what it looks like and where it lies among those that the model finds. Ours."""

from __future__ import annotations

import torch
from torch import nn

from baps.fseft.adapters.adapter import FewShotAdapter
from baps.fseft.adapters.organ_head import organ_head
from baps.fseft.models import FoundationModel

_WIDTH = 32
_BODIES = 16
"""How many made-up bodies the voxels of a step are of."""

_LARGER, _ELSEWHERE, _MISSING = 0.1, 0.1, 0.2
"""Of a made-up body: spread of its size, as a share; spread of where each organ lies, dm; share of organs that are not
found in it."""


class LandmarkAdapter(FewShotAdapter):
    """Adds to the head of an organ what a small perceptron says of each voxel; reads what ``add_landmarks`` gives.

    In training, bodies are made larger and smaller, organs are moved, and some are missing, so that one volume is not
    learned by heart.

    Args:
        model, organ: see ``organ_head``. Of a model without classes it sees looks alone. Untrained, the
            answer to a class is the model's own.
    """

    reads = "landmarks"

    def __init__(self, model: FoundationModel, organ: str) -> None:
        super().__init__()
        self._looks, self._organs = model.channels + 1, len(model.classes)
        self.head = organ_head(model, organ)
        channels = 2 * self._looks + 3 * self._organs
        last = nn.Linear(_WIDTH, 1, bias=False)
        if model.index(organ) is not None:
            nn.init.zeros_(last.weight)
        self.perceptron = nn.Sequential(
            nn.Linear(channels, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, _WIDTH), nn.ReLU(), last
        )

    def varied(self, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Voxels (B, C, ...) of made-up bodies."""
        looks, ways = inputs.split([2 * self._looks, 3 * self._organs], 1)
        ways = ways.unflatten(1, (self._organs, 3))
        body = torch.randint(_BODIES, inputs[:, 0].shape, generator=generator)

        def drawn(*shape: int) -> torch.Tensor:
            """Of each body, by voxel: (B, organs, axes, ...)."""
            return torch.randn(_BODIES, *shape, generator=generator)[body].movedim((-2, -1), (1, 2)).to(ways)

        found = torch.rand(_BODIES, self._organs, 1, generator=generator)[body].movedim((-2, -1), (1, 2)) > _MISSING
        ways = ways * (1 + _LARGER * drawn(1, 3)) + _ELSEWHERE * drawn(self._organs, 3)
        return torch.cat([looks, (ways * found.to(ways)).flatten(1, 2)], 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W, D) to logits (B, 1, H, W, D); each voxel alone."""
        place = self.perceptron(inputs.movedim(1, -1)).movedim(-1, 1)
        logits: torch.Tensor = self.head(inputs[:, 1 : self._looks]) + place
        return logits
