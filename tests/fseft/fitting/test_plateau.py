from __future__ import annotations

import pytest

from baps.fseft.fitting.plateau import Plateau


def _epochs(losses: list[float]) -> int | None:
    plateau = Plateau()
    return next((n for n, loss in enumerate(losses, 1) if plateau.reached(loss)), None)


def test_constant_loss_ends_as_early_as_possible() -> None:
    assert _epochs([0.5] * 100) == 30


@pytest.mark.parametrize(("slope", "ends"), [(1e-4, None), (4e-5, 30)])
def test_loss_must_fall_by_a_thousandth_in_twenty_epochs(slope: float, ends: int | None) -> None:
    assert _epochs([1 - slope * n for n in range(200)]) == ends


def test_loss_that_falls_and_then_is_flat() -> None:
    """The loss is zero after epoch 21, which leaves the compared window of ten epochs after epoch 51."""
    assert _epochs([1 - n / 21 for n in range(21)] + [0.0] * 100) == 51


def test_noise_is_smoothed() -> None:
    """A single bad epoch does not end a fit that still improves."""
    losses = [1 - 0.01 * n for n in range(60)]
    losses[45] += 0.2
    assert _epochs(losses) is None
