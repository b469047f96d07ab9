"""An adapter on output probabilities alone, for a model that is truly a black box. Ours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from baps.fseft.adapters.adapter import FewShotAdapter
from baps.fseft.models import class_index

_SMALL = 1e-6
_WIDTH = 8
_UNIT = 5.0
"""Log odds of a sure answer, about; the convolutions read numbers of unit size."""


class OutputAdapter(FewShotAdapter):
    """Combines the log odds of all classes, and corrects them by their surroundings (3x3x3, twice).

    Untrained, it answers a known organ's own probability; an organ that the model does not know, with 0.5 everywhere.

    Args:
        classes: what the model's probabilities are called, in their order; nothing else is known of it.
        organ: one of them, or another one.
    """

    reads = "probabilities"
    reach = 2

    def __init__(self, classes: Sequence[str], organ: str) -> None:
        super().__init__()
        self.combine = nn.Conv3d(len(classes), 1, 1)
        self.first = nn.Conv3d(len(classes), _WIDTH, 3, padding=1)
        self.last = nn.Conv3d(_WIDTH, 1, 3, padding=1, bias=False)
        assert self.combine.bias is not None
        for weights in (self.combine.weight, self.combine.bias, self.last.weight):
            nn.init.zeros_(weights)
        index = class_index(classes, organ)
        if index is not None:
            nn.init.ones_(self.combine.weight[:, index])

    def forward(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Probabilities (B, K, H, W, D) to logits (B, 1, H, W, D)."""
        odds = torch.logit(probabilities.float(), _SMALL)
        logits: torch.Tensor = self.combine(odds) + self.last(torch.relu(self.first(odds / _UNIT)))
        return logits
