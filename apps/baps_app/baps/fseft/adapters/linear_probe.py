"""Linear probe: a head of its own on the features of a frozen model."""

from __future__ import annotations

import torch

from baps.fseft.adapters.adapter import FewShotAdapter
from baps.fseft.adapters.organ_head import organ_head
from baps.fseft.models import FoundationModel


class LinearProbe(FewShotAdapter):
    """C + 1 parameters."""

    def __init__(self, model: FoundationModel, organ: str) -> None:
        super().__init__()
        self.head = organ_head(model, organ)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features (B, C, H, W, D) to logits (B, 1, H, W, D)."""
        logits: torch.Tensor = self.head(features)
        return logits
