from __future__ import annotations

import pytest
import torch

from baps.fseft.losses import dice_loss

PROBABILITY = torch.tensor([0.9, 0.2, 0.5, 0.4]).view(1, 1, 2, 2, 1)
TRUTH = torch.tensor([1.0, 0.0, 1.0, 0.0]).view(1, 1, 2, 2, 1)


def test_dice_loss_by_hand() -> None:
    assert float(dice_loss(PROBABILITY, TRUTH)) == pytest.approx(1 - (2 * 1.4 + 1) / (2.0 + 2 + 1))


def test_batch_dice_loss_by_hand() -> None:
    both = dice_loss(torch.cat([PROBABILITY, PROBABILITY]), torch.cat([TRUTH, 0 * TRUTH]))
    assert float(both) == pytest.approx(1 - (2 * 1.4 + 1) / (4.0 + 2 + 1))


def test_perfect_and_wrong_masks() -> None:
    assert float(dice_loss(TRUTH, TRUTH)) == 0
    assert float(dice_loss(1 - TRUTH, TRUTH)) == pytest.approx(1 - 1 / 5)
    assert float(dice_loss(0 * TRUTH, 0 * TRUTH)) == 0


def test_unlabelled_voxels_are_ignored() -> None:
    labelled = torch.tensor([1, 1, 0, 0], dtype=torch.bool).view(1, 1, 2, 2, 1)
    expected = 1 - (2 * 0.9 + 1) / (1.1 + 1 + 1)
    assert float(dice_loss(PROBABILITY, TRUTH, labelled)) == pytest.approx(expected)
    changed = PROBABILITY.clone().requires_grad_()
    dice_loss(changed, TRUTH, labelled).backward()
    assert changed.grad is not None
    assert changed.grad.flatten()[2:].tolist() == [0, 0]
    assert bool(changed.grad.flatten()[:2].all())


def test_voxels_are_weighted() -> None:
    weights = torch.tensor([3, 1, 1, 2]).view(1, 1, 2, 2, 1)
    voxels = torch.repeat_interleave(torch.arange(4), weights.flatten())
    every = dice_loss(PROBABILITY.flatten()[voxels], TRUTH.flatten()[voxels])
    assert float(dice_loss(PROBABILITY, TRUTH, weights)) == pytest.approx(float(every))
