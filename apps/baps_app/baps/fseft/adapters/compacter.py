"""Compacter: bottlenecks after the attention and the perceptron of each block, with few parameters.

Their weights are sums of Kronecker products. Karimi Mahabadi et al., *Compacter: Efficient Low-Rank Hypercomplex
Adapter Layers*, NeurIPS 2021.
"""

from __future__ import annotations

import torch
from torch import nn

from baps.fseft.adapters.blocks import transformer_blocks
from baps.fseft.adapters.tuned import TunedModel

_TERMS = 4
"""Number of Kronecker products per weight matrix."""
_WIDTH = 16
"""Width of the bottleneck, as for AdaptFormer here; FSEFT does not give it."""


class _Hypercomplex(nn.Module):
    """``x W + b`` with ``W = sum_i A_i kron (s_i t_i)``; all layers share the A_i; s_i and t_i have rank one.

    Args:
        shared: the A_i of all layers.
        inputs: number of input channels.
        outputs: number of output channels.
    """

    def __init__(self, shared: nn.Parameter, inputs: int, outputs: int) -> None:
        super().__init__()
        self.shared = shared
        # The entries of W then have variance 1 / inputs.
        self.left = nn.Parameter(torch.randn(_TERMS, inputs // _TERMS, 1) / inputs**0.5)
        self.right = nn.Parameter(torch.randn(_TERMS, 1, outputs // _TERMS))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def weight(self) -> torch.Tensor:
        """Return W, (inputs, outputs).

        Returns:
            The weight matrix.
        """
        return torch.einsum("nab,ncd->acbd", self.shared, self.left @ self.right).flatten(2).flatten(0, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight() + self.bias


class _SerialBottleneck(nn.Module):
    """``y + up(GELU(down(y)))`` of a module's output y; before training, the bottleneck adds nothing.

    Args:
        shared: the A_i of all layers.
        channels: channels of the block.
        module: the module whose output y is changed.
    """

    def __init__(self, shared: nn.Parameter, channels: int, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.down = _Hypercomplex(shared, channels, _WIDTH)
        self.up = _Hypercomplex(shared, _WIDTH, channels)
        nn.init.zeros_(self.up.right)

    def forward(self, x: torch.Tensor, **beside: torch.Tensor | None) -> torch.Tensor:
        y: torch.Tensor = self.module(x, **beside)
        added: torch.Tensor = self.up(nn.functional.gelu(self.down(y)))
        return y + added


def add_compacter(tuned: TunedModel) -> None:
    """Add trainable bottlenecks to every block.

    Args:
        tuned: the copy of the foundation model, changed in place.
    """
    shared = nn.Parameter(torch.randn(_TERMS, _TERMS, _TERMS) / _TERMS**0.5)
    for block in transformer_blocks(tuned.model):
        block.attn = _SerialBottleneck(shared, block.dim, block.attn)
        block.mlp = _SerialBottleneck(shared, block.dim, block.mlp)
