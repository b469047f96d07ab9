"""LoRA: low-rank updates of the attention's weights, on the fused query, key and value as in FSEFT.

Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, ICLR 2022.
"""

from __future__ import annotations

import torch
from torch import nn

from baps.fseft.adapters.blocks import transformer_blocks
from baps.fseft.adapters.tuned import TunedModel

_RANK = 4
"""Rank for each of query, key and value."""


class _LowRank(nn.Module):
    """``base(x) + up(down(x))``: one bottleneck of three ranks for all three; before training, it adds nothing.

    Args:
        base: the layer that is updated.
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 3 * _RANK, bias=False)
        self.up = nn.Linear(3 * _RANK, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.base(x) + self.up(self.down(x))
        return output


def add_lora(tuned: TunedModel) -> None:
    """Add trainable low-rank updates to every block.

    Args:
        tuned: the copy of the foundation model, changed in place.
    """
    for block in transformer_blocks(tuned.model):
        block.attn.qkv = _LowRank(block.attn.qkv)
