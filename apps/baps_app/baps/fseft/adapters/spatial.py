"""Spatial adapter: the features of a frozen model are changed, each with regard to its neighbours, before the head.

Silva-Rodriguez et al.: ``f + Conv(ReLU(Conv(f)))``, then a linear probe.
"""

from __future__ import annotations

import torch
from torch import nn

from baps.fseft.adapters.adapter import FewShotAdapter
from baps.fseft.adapters.organ_head import organ_head
from baps.fseft.models import FoundationModel


class SpatialAdapter(FewShotAdapter):
    """Untrained, it leaves the features as they are.

    Args:
        model, organ: see ``organ_head``.
        width: of the kernels, voxels; 3 as published.
    """

    def __init__(self, model: FoundationModel, organ: str, width: int = 3) -> None:
        super().__init__()
        self.reach = 2 * (width // 2)
        channels = model.channels
        self.first = nn.Conv3d(channels, channels, width, padding=width // 2, bias=False)
        self.last = nn.Conv3d(channels, channels, width, padding=width // 2, bias=False)
        nn.init.zeros_(self.last.weight)
        self.head = organ_head(model, organ)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features (B, C, H, W, D) to logits (B, 1, H, W, D)."""
        logits: torch.Tensor = self.head(features + self.last(torch.relu(self.first(features))))
        return logits
