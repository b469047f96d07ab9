from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baps.imaging.metrics import dice


@pytest.mark.parametrize(
    ("mask", "target", "expected"),
    [
        ([1, 1, 0, 0], [1, 1, 0, 0], 1.0),
        ([1, 1, 0, 0], [0, 0, 1, 1], 0.0),
        ([1, 1, 1, 0], [0, 1, 0, 0], 0.5),
        ([1, 1, 0, 0], [0, 1, 1, 0], 0.5),
        ([0, 0, 0, 0], [0, 0, 0, 0], 1.0),
        ([0, 0, 0, 0], [1, 0, 0, 0], 0.0),
    ],
)
def test_dice_by_hand(mask: list[int], target: list[int], expected: float) -> None:
    assert dice(np.array(mask, bool), np.array(target, bool)) == expected


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_dice_is_symmetric_and_bounded(pairs: list[tuple[bool, bool]]) -> None:
    first, second = np.array(pairs, bool).T
    assert dice(first, second) == dice(second, first)
    assert 0.0 <= dice(first, second) <= 1.0
    assert (dice(first, second) == 1.0) == np.array_equal(first, second)


def test_dice_does_not_overflow_on_large_masks() -> None:
    full = np.ones((70_000, 100), bool)
    assert dice(full, full) == 1.0
