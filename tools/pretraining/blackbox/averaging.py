"""The weights that a pre-training keeps: a moving average of those that it trains, in half precision."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, weight: float) -> None:
    """Move an average on, in place: ``weight`` of it, the rest of the model; what is no fraction is taken over."""
    for mine, theirs in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(theirs, 1 - weight)
        else:
            mine.copy_(theirs)


def halved(model: nn.Module) -> dict[str, torch.Tensor]:
    """Its state in half precision, as it is published."""
    return {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in model.state_dict().items()}
