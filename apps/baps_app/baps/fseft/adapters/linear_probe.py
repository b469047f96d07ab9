"""Linear probe: a head of its own on the features of a frozen model."""

from __future__ import annotations

import torch

from ..models import FoundationModel
from .adapter import FewShotAdapter
from .organ_head import organ_head


class LinearProbe(FewShotAdapter):
    """C + 1 parameters."""

    def __init__(self, model: FoundationModel, organ: str) -> None:
        super().__init__()
        self.head = organ_head(model, organ)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features (B, C, H, W, D) to logits (B, 1, H, W, D)."""
        logits: torch.Tensor = self.head(features)
        return logits
