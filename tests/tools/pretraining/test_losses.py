from __future__ import annotations

import math

import pytest
import torch

from tools.pretraining.losses import mask_loss


def test_mask_loss_by_hand() -> None:
    logits = torch.tensor([[[0.0, math.log(3)]]])  # Probabilities 1/2 and 3/4.
    targets = torch.tensor([[[0.0, 1.0]]])
    dice = 1 - (2 * 0.75 + 1) / (1.25 + 1 + 1)
    entropy = -(math.log(0.5) + math.log(0.75)) / 2
    assert float(mask_loss(logits, targets)) == pytest.approx(dice + 2 * entropy, rel=1e-5)
