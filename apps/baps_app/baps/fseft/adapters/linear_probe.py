"""Linear probe: a new head on the features of a frozen model."""

from __future__ import annotations

import torch

from baps.fseft.adapters.adapter import FewShotAdapter
from baps.fseft.adapters.organ_head import organ_head
from baps.fseft.models import FoundationModel


class LinearProbe(FewShotAdapter):
    """A linear head with C + 1 parameters.

    Args:
        model: the foundation model.
        organ: the organ, see ``organ_head``.
    """

    def __init__(self, model: FoundationModel, organ: str) -> None:
        super().__init__()
        self.head = organ_head(model, organ)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Apply the head.

        Args:
            features: (B, C, H, W, D).

        Returns:
            Logits, (B, 1, H, W, D).
        """
        logits: torch.Tensor = self.head(features)
        return logits
