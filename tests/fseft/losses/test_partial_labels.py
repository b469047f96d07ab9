from __future__ import annotations

import pytest
import torch

from baps.errors import InputError
from baps.fseft.losses import dice_loss, partial_dice_loss

GENERATOR = torch.Generator().manual_seed(0)
PROBABILITY = torch.rand((2, 3, 4, 5, 6), generator=GENERATOR)
TRUTH = (torch.rand((2, 3, 4, 5, 6), generator=GENERATOR) > 0.5).float()


def test_loss_of_complete_labels_is_the_mean_over_organs() -> None:
    expected = torch.stack([dice_loss(PROBABILITY[:, k], TRUTH[:, k]) for k in range(3)]).mean()
    torch.testing.assert_close(partial_dice_loss(PROBABILITY, TRUTH, torch.ones(2, 3, dtype=torch.bool)), expected)


def test_unlabelled_organs_are_ignored() -> None:
    """The first volume labels organs 0 and 1, the second organ 1, and none organ 2."""
    known = torch.tensor([[True, True, False], [False, True, False]])
    expected = (dice_loss(PROBABILITY[:1, 0], TRUTH[:1, 0]) + dice_loss(PROBABILITY[:, 1], TRUTH[:, 1])) / 2
    probability = PROBABILITY.clone().requires_grad_()
    result = partial_dice_loss(probability, TRUTH, known)
    torch.testing.assert_close(result.detach(), expected)
    result.backward()
    assert probability.grad is not None
    assert torch.equal(probability.grad.flatten(2).any(2), known)


def test_labels_without_a_known_organ_are_refused() -> None:
    with pytest.raises(InputError, match="No volume of the batch has a labelled organ"):
        partial_dice_loss(PROBABILITY, TRUTH, torch.zeros(2, 3, dtype=torch.bool))
