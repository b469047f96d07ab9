from __future__ import annotations

import pytest
import torch

from baps.fseft.losses import size_penalty, soft_size


@pytest.mark.parametrize(
    ("size", "penalty"),
    [(1000, 0), (700, 0), (1300, 0), (701, 0), (600, 0.1), (0, 0.7), (1400, 0.1), (3300, 2.0)],
)
def test_penalty_by_hand(size: float, penalty: float) -> None:
    """The penalty is |S' - 0.7 S| / S below and |S' - 1.3 S| / S above."""
    assert float(size_penalty(torch.tensor(float(size)), 1000)) == pytest.approx(penalty, abs=1e-6)


def test_margin_is_configurable() -> None:
    assert float(size_penalty(torch.tensor(800.0), 1000, margin=0.1)) == pytest.approx(0.1, abs=1e-6)


def test_gradient_points_towards_the_size() -> None:
    for size, sign in ((500.0, -1), (1000.0, 0), (2000.0, 1)):
        predicted_size = torch.tensor(size, requires_grad=True)
        size_penalty(predicted_size, 1000).backward()
        assert predicted_size.grad is not None
        assert float(predicted_size.grad) == pytest.approx(sign / 1000)


def test_a_soft_size_is_a_sum() -> None:
    assert float(soft_size(torch.full((1, 1, 2, 3, 4), 0.25))) == pytest.approx(6)
