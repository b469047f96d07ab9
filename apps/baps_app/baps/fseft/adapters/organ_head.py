"""The head of one organ."""

from __future__ import annotations

import torch
from torch import nn

from baps.fseft.models import FoundationModel


def organ_head(model: FoundationModel, organ: str) -> nn.Conv3d:
    """A 1x1x1 convolution, C to 1; of an organ that the model knows, with the weights that it was pre-trained with.

    The zero-shot initialisation of FSEFT (Silva-Rodriguez et al.): adaptation begins at the model's own
    answer. For an organ that it does not know, random weights.
    """
    head = nn.Conv3d(model.channels, 1, 1)
    index = model.index(organ)
    if index is not None and model.head is not None:
        assert head.bias is not None and model.head.bias is not None
        with torch.no_grad():
            head.weight.copy_(model.head.weight[index : index + 1])
            head.bias.copy_(model.head.bias[index : index + 1])
    return head
