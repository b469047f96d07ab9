from __future__ import annotations

import math

import pytest
import torch

from baps.training.losses import batch_loss, image_losses

PROBABILITY = torch.tensor([[[0.9, 0.2]], [[0.5, 0.5]]])
TRUTH = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])


def test_image_losses_by_hand() -> None:
    first = 1 - (2 * 0.9 + 1) / (1.1 + 1 + 1) - (math.log(0.9) + math.log(0.8)) / 2
    second = 1 - (2 * 0.5 + 1) / (1.0 + 1 + 1) - math.log(0.5)
    torch.testing.assert_close(image_losses(PROBABILITY, TRUTH), torch.tensor([first, second]))


def test_batch_loss_by_hand() -> None:
    entropy = -(math.log(0.9) + math.log(0.8) + 2 * math.log(0.5)) / 4
    dice = 1 - (2 * (0.9 + 0.5) + 1) / (2.1 + 2 + 1)
    assert float(batch_loss(PROBABILITY, TRUTH)) == pytest.approx(dice + entropy, rel=1e-5)


def test_loss_of_a_batch_of_one_is_that_of_its_image() -> None:
    for row in (slice(0, 1), slice(1, 2)):
        torch.testing.assert_close(batch_loss(PROBABILITY[row], TRUTH[row]), image_losses(PROBABILITY, TRUTH)[row][0])


def test_image_losses_are_independent() -> None:
    changed = PROBABILITY.clone()
    changed[1] = 0.01
    assert torch.equal(image_losses(changed, TRUTH)[0], image_losses(PROBABILITY, TRUTH)[0])


def test_losses_of_perfect_and_wrong_masks_are_finite() -> None:
    perfect, wrong = image_losses(TRUTH, TRUTH), image_losses(1 - TRUTH, TRUTH)
    assert float(perfect.max()) < 1e-3
    assert bool(torch.isfinite(wrong).all())
    # 1 - 1 / 3 of Dice, and -log(1e-4).
    torch.testing.assert_close(wrong, torch.full((2,), 2 / 3 - math.log(1e-4)), rtol=1e-3, atol=0)


def test_empty_masks_have_no_loss() -> None:
    empty = torch.zeros(1, 4, 4)
    assert float(image_losses(empty, empty)) < 1e-3
