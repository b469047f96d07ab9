from __future__ import annotations

import copy

import torch
from torch import nn

from tools.pretraining.averaging import half_precision_state, update_average


def test_average_is_updated_by_its_weight() -> None:
    model = nn.BatchNorm1d(2)
    average = copy.deepcopy(model)
    with torch.no_grad():
        model.weight.fill_(3.0)
    model.num_batches_tracked.fill_(7)
    update_average(average, model, 0.75)
    assert average.weight.tolist() == [1.5, 1.5]
    assert average.num_batches_tracked == 7  # Integers are copied.


def test_only_floats_are_converted_to_half_precision() -> None:
    state = half_precision_state(nn.BatchNorm1d(2))
    assert state["weight"].dtype == torch.float16
    assert state["num_batches_tracked"].dtype == torch.int64
