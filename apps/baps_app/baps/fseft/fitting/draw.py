"""What a step of a fit is taken on."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Draw:
    """Some voxels of a labelled volume: a cube, or single ones as (N, 1, 1).

    Attributes:
        inputs: (C, H, W, D), see ``Example``.
        truth: (1, H, W, D) bool.
        weights: (1, H, W, D), how many voxels of the volume each stands for; 0 where nobody has labelled.
    """

    inputs: torch.Tensor
    truth: torch.Tensor
    weights: torch.Tensor
