"""Spatial adapter: a residual correction of the features by their neighbourhood, then a linear probe.

``f + Conv(ReLU(Conv(f)))`` on the features of a frozen model (Silva-Rodriguez et al.).
"""

from __future__ import annotations

import torch
from torch import nn

from baps.fseft.adapters.adapter import FewShotAdapter
from baps.fseft.adapters.organ_head import organ_head
from baps.fseft.models import FoundationModel


class SpatialAdapter(FewShotAdapter):
    """Adapt features by their neighbourhood; before training, the features are unchanged.

    Args:
        model: the foundation model.
        organ: the organ, see ``organ_head``.
        width: side of the kernels, voxels; 3 as published.
    """

    def __init__(self, model: FoundationModel, organ: str, width: int = 3) -> None:
        super().__init__()
        self.receptive_radius = 2 * (width // 2)
        channels = model.channels
        self.first = nn.Conv3d(channels, channels, width, padding=width // 2, bias=False)
        self.last = nn.Conv3d(channels, channels, width, padding=width // 2, bias=False)
        nn.init.zeros_(self.last.weight)
        self.head = organ_head(model, organ)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Correct the features, and apply the head.

        Args:
            features: (B, C, H, W, D).

        Returns:
            Logits, (B, 1, H, W, D).
        """
        logits: torch.Tensor = self.head(features + self.last(torch.relu(self.first(features))))
        return logits
