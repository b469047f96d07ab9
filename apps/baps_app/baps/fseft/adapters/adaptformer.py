"""AdaptFormer: a bottleneck parallel to the multilayer perceptron of each block.

Chen et al., *AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition*, NeurIPS 2022.
"""

from __future__ import annotations

import torch
from torch import nn

from baps.fseft.adapters.blocks import transformer_blocks
from baps.fseft.adapters.tuned import TunedModel

_RANK = 16
_SCALE = 0.1
"""Scale of the bottleneck's output."""


class _ParallelBottleneck(nn.Module):
    """``mlp(norm(x)) + 0.1 up(ReLU(down(x)))``; before training, the bottleneck adds nothing.

    Args:
        channels: channels of the block.
        norm: the block's second normalisation.
        mlp: the block's perceptron.
    """

    def __init__(self, channels: int, norm: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm, self.mlp = norm, mlp
        self.down = nn.Linear(channels, _RANK)
        self.up = nn.Linear(_RANK, channels)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.mlp(self.norm(x)) + _SCALE * self.up(torch.relu(self.down(x)))
        return output


def add_adaptformer(tuned: TunedModel) -> None:
    """Add a trainable bottleneck to every block.

    Args:
        tuned: the copy of the foundation model, changed in place.
    """
    for block in transformer_blocks(tuned.model):
        block.mlp = _ParallelBottleneck(block.dim, block.norm2, block.mlp)
        block.norm2 = nn.Identity()  # The bottleneck reads the input before normalisation.
