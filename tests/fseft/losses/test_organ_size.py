from __future__ import annotations

import pytest
import torch

from baps.fseft.losses import size_penalty, soft_size


@pytest.mark.parametrize(
    ("size", "penalty"),
    [(1000, 0), (700, 0), (1300, 0), (701, 0), (600, 0.1), (0, 0.7), (2000, 0.35), (13_000, 0.9)],
)
def test_penalty_by_hand(size: float, penalty: float) -> None:
    """The penalty is |S' - 0.7 S| / S below and |S' - 1.3 S| / S' above."""
    assert float(size_penalty(torch.tensor(float(size)), 1000)) == pytest.approx(penalty, abs=1e-6)


def test_margin_is_configurable() -> None:
    assert float(size_penalty(torch.tensor(800.0), 1000, margin=0.1)) == pytest.approx(0.1, abs=1e-6)


def test_gradient_points_towards_the_size() -> None:
    for size, slope in ((500.0, -1 / 1000), (1000.0, 0), (2000.0, 1 / 2000)):
        predicted_size = torch.tensor(size, requires_grad=True)
        size_penalty(predicted_size, 1000).backward()
        assert predicted_size.grad is not None
        assert float(predicted_size.grad) == pytest.approx(slope)


@pytest.mark.parametrize("size", [100.0, 600.0, 900.0, 1500.0, 2000.0, 50_000.0])
def test_gradient_is_that_of_the_authors_code(size: float) -> None:
    """They take ``(S - S') / max(S', S)``, the divisor as a constant, and penalise its absolute value above g."""
    ours, theirs = (torch.tensor(size, dtype=torch.float64, requires_grad=True) for _ in range(2))
    size_penalty(ours, 1000).backward()
    error = ((1000 - theirs) / max(theirs.item(), 1000)).abs()
    (error * (error > 0.3)).backward()
    assert ours.grad == theirs.grad


def test_a_soft_size_is_a_sum() -> None:
    assert float(soft_size(torch.full((1, 1, 2, 3, 4), 0.25))) == pytest.approx(6)
