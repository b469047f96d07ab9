"""A copy of a foundation model of which some, or all, is trained."""

from __future__ import annotations

from copy import deepcopy

import torch

from baps.fseft.adapters.adapter import FewShotAdapter
from baps.fseft.adapters.organ_head import organ_head
from baps.fseft.models import FoundationModel

_SHIFT = 0.1
"""Of images in [0, 1], at the most."""


class TunedModel(FewShotAdapter):
    """Frozen but for its new head, until more is added to it or made trainable.

    Args:
        model, organ: see ``organ_head``; the model itself is left as it is.
    """

    reads = "images"

    def __init__(self, model: FoundationModel, organ: str) -> None:
        super().__init__()
        self.model = deepcopy(model).requires_grad_(False)
        self.model.head = organ_head(model, organ)
        self.model.classes = (organ,)

    def varied(self, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Half of the images made brighter or darker. Ours, as are its limits."""
        size = (len(inputs), 1, 1, 1, 1)
        shift = _SHIFT * (2 * torch.rand(size, generator=generator) - 1)
        return inputs + (shift * (torch.rand(size, generator=generator) < 0.5)).to(inputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 1, H, W, D) in [0, 1] to logits (B, 1, H, W, D)."""
        logits: torch.Tensor = self.model(images)
        return logits
