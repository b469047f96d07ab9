"""The voxels of a training step."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Draw:
    """Some voxels of a labelled volume: a cube, or single voxels as (N, 1, 1).

    Attributes:
        inputs: (C, H, W, D), see ``Example``.
        target: (1, H, W, D) bool.
        weights: (1, H, W, D), how many voxels of the volume each one represents; 0 where the volume was not annotated.
    """

    inputs: torch.Tensor
    target: torch.Tensor
    weights: torch.Tensor
