"""A copy of a foundation model of which a part, or all, is trained."""

from __future__ import annotations

from copy import deepcopy

import torch

from baps.fseft.adapters.adapter import FewShotAdapter
from baps.fseft.adapters.organ_head import organ_head
from baps.fseft.models import FoundationModel

_MAX_SHIFT, _SHIFT_RATE = 0.1, 0.2
"""Largest brightness shift of images in [0, 1], and share of the images that are shifted; as published."""


class TunedModel(FewShotAdapter):
    """A copy of a foundation model, frozen except for its new head.

    A method adds modules to it or makes more of it trainable.

    Args:
        model: the foundation model; it is not changed.
        organ: the organ, see ``organ_head``.

    Attributes:
        input_kind: ``images``.
    """

    input_kind = "images"

    def __init__(self, model: FoundationModel, organ: str) -> None:
        super().__init__()
        self.model = deepcopy(model).requires_grad_(False)
        self.model.head = organ_head(model, organ)
        self.model.classes = (organ,)

    def augment(self, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Make a fifth of the images brighter or darker.

        Args:
            inputs: (B, 1, H, W, D).
            generator: the source of randomness.

        Returns:
            (B, 1, H, W, D).
        """
        size = (len(inputs), 1, 1, 1, 1)
        shift = _MAX_SHIFT * (2 * torch.rand(size, generator=generator) - 1)
        return inputs + (shift * (torch.rand(size, generator=generator) < _SHIFT_RATE)).to(inputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Run the model.

        Args:
            images: (B, 1, H, W, D) in [0, 1].

        Returns:
            Logits, (B, 1, H, W, D).
        """
        logits: torch.Tensor = self.model(images)
        return logits
