"""Compacter: a hypercomplex layer after the attention and the perceptron of each block, and the normalisations.

The layers' weights are sums of Kronecker products. Karimi Mahabadi et al., *Compacter: Efficient Low-Rank Hypercomplex
Adapter Layers*, NeurIPS 2021, with one layer in place of a bottleneck of two (Silva-Rodriguez et al.).
"""

from __future__ import annotations

import torch
from torch import nn

from baps.fseft.adapters.blocks import transformer_blocks
from baps.fseft.adapters.selective import tune_layer_norms
from baps.fseft.adapters.tuned import TunedModel

_TERMS = 4
"""Number of Kronecker products per weight matrix."""


class _Hypercomplex(nn.Module):
    """``y + y W + b`` of a module's output y, with ``W = sum_i A_i kron B_i``; before training, it adds nothing.

    Published, ``y W + b`` is the output and the A_i are drawn from N(0, 0.01^2), which begins by erasing what the
    pre-trained module computes. Here y is kept, and the A_i start at 0.

    Args:
        channels: channels of the block.
        module: the module whose output y is changed.
    """

    def __init__(self, channels: int, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        side = channels // _TERMS
        self.left = nn.Parameter(torch.zeros(_TERMS, _TERMS, _TERMS))
        self.right = nn.Parameter(torch.stack([_glorot(side) for _ in range(_TERMS)]))
        self.bias = nn.Parameter(torch.zeros(channels))

    def weight(self) -> torch.Tensor:
        """Return W, (channels, channels).

        Returns:
            The weight matrix.
        """
        return torch.einsum("nab,ncd->acbd", self.left, self.right).flatten(2).flatten(0, 1)

    def forward(self, x: torch.Tensor, **beside: torch.Tensor | None) -> torch.Tensor:
        y: torch.Tensor = self.module(x, **beside)
        return y + y @ self.weight() + self.bias


def _glorot(side: int) -> torch.Tensor:
    return nn.init.xavier_uniform_(torch.empty(side, side), gain=2**0.5)


def add_compacter(tuned: TunedModel) -> None:
    """Add trainable layers to every block, and make the normalisations of the encoder trainable.

    Args:
        tuned: the copy of the foundation model, changed in place.
    """
    for block in transformer_blocks(tuned.model):
        block.attn = _Hypercomplex(block.dim, block.attn)
        block.mlp = _Hypercomplex(block.dim, block.mlp)
    tune_layer_norms(tuned)
