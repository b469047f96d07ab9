"""Build the head of one organ."""

from __future__ import annotations

import torch
from torch import nn

from baps.fseft.models import FoundationModel


def organ_head(model: FoundationModel, organ: str) -> nn.Conv3d:
    """Build a 1x1x1 convolution from C channels to 1.

    For an organ that the model knows, it has the pre-trained weights: the zero-shot initialisation of FSEFT
    (Silva-Rodriguez et al.), so that adaptation starts at the model's own output. For another organ, it has random
    weights.

    Args:
        model: the foundation model.
        organ: one of its classes, or a new one.

    Returns:
        The convolution, on the CPU.
    """
    head = nn.Conv3d(model.channels, 1, 1)
    index = model.index(organ)
    if index is not None and model.head is not None:
        assert head.bias is not None and model.head.bias is not None
        with torch.no_grad():
            head.weight.copy_(model.head.weight[index : index + 1])
            head.bias.copy_(model.head.bias[index : index + 1])
    return head
