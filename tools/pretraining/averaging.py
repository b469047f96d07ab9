"""Average the weights of a pre-training, and convert them to half precision for publication."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, weight: float) -> None:
    """Update an exponential moving average of a model, in place. Integers are copied.

    Args:
        average: the average, a copy of the model.
        model: the model.
        weight: weight of the average; the model has the rest.
    """
    for averaged, current in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if averaged.is_floating_point():
            averaged.lerp_(current, 1 - weight)
        else:
            averaged.copy_(current)


def half_precision_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Convert the state of a model to half precision, as it is published.

    Args:
        model: the model.

    Returns:
        The tensors by name; integers keep their type.
    """
    return {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in model.state_dict().items()}
