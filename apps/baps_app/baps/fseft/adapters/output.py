"""Adapt on output probabilities only, for a model that is truly a black box. Not from the FSEFT paper."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from baps.fseft.adapters.adapter import FewShotAdapter
from baps.fseft.models import class_index

_EPSILON = 1e-6
_WIDTH = 8
_LOGIT_SCALE = 5.0
"""Typical log odds of a confident output; the convolutions read values of unit size."""


class OutputAdapter(FewShotAdapter):
    """Combine the log odds of all classes, and correct them by their neighbourhood (3x3x3, twice).

    Before training, the output is the probability of a known organ, or 0.5 everywhere for an organ that the model does
    not know.

    Args:
        classes: names of the model's classes, in order; nothing else of the model is used.
        organ: one of them, or a new one.

    Attributes:
        input_kind: ``probabilities``.
        receptive_radius: 2, of two convolutions.
    """

    input_kind = "probabilities"
    receptive_radius = 2

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
        """Combine and correct the probabilities.

        Args:
            probabilities: (B, K, H, W, D).

        Returns:
            Logits, (B, 1, H, W, D).
        """
        odds = torch.logit(probabilities.float(), _EPSILON)
        logits: torch.Tensor = self.combine(odds) + self.last(torch.relu(self.first(odds / _LOGIT_SCALE)))
        return logits
