from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.interactive.scribbles import (
    CANDIDATES,
    DEFAULT,
    ONE_CLICK,
    PLACEMENTS,
    SHARES,
    STROKES_KEPT,
    Choice,
    around,
    rows_of,
    share_of,
)


@pytest.fixture
def strokes() -> NDArray[np.bool_]:
    """Draw a thick line and a thin one with a corner, (40, 60)."""
    mask = np.zeros((40, 60), bool)
    mask[8:13, 10:40] = True
    mask[20:35, 50] = mask[34, 30:51] = True
    return mask


@pytest.mark.parametrize("way", PLACEMENTS)
def test_every_placement_clicks_on_the_strokes(way: str, strokes: NDArray[np.bool_]) -> None:
    for max_clicks in (1, 3, 6):
        clicks = PLACEMENTS[way](strokes, max_clicks, np.random.default_rng(0))
        assert 1 <= len(clicks) == len(set(clicks)) <= max_clicks
        assert all(strokes[int(y), int(x)] for x, y in clicks)
        assert PLACEMENTS[way](np.zeros_like(strokes), max_clicks, np.random.default_rng(0)) == ()


def test_along_spaces_clicks_equally_on_a_line_with_a_corner() -> None:
    mask = np.zeros((40, 60), bool)
    mask[4:34, 50] = mask[34, 20:51] = True
    first, second = sorted(PLACEMENTS["along"](mask, 2, np.random.default_rng(0)))
    assert first == pytest.approx((35, 34), abs=3)
    assert second == pytest.approx((50, 19), abs=3)


def test_clicks_can_be_restricted_to_the_longest_stroke(strokes: NDArray[np.bool_]) -> None:
    choice = Choice("deepest", 1, longest=True)
    ((x, y),) = choice.prompt(strokes, strokes, strokes, np.random.default_rng(0)).positive
    assert (12 <= x <= 37, y) == (True, 10)


def test_box_with_margin_is_clipped_to_the_image(strokes: NDArray[np.bool_]) -> None:
    assert around(strokes, 0) == (10, 8, 50, 34)
    assert around(strokes, 1.0) == (0, 0, 59, 39)


@pytest.mark.parametrize("share", SHARES)
def test_share_of_strokes_is_nearest_to_their_deepest_pixel(strokes: NDArray[np.bool_], share: float) -> None:
    part = share_of(strokes, share)
    assert part.sum() == round(share * strokes.sum())
    assert not (part & ~strokes).any()
    assert part[10, 12:15].any()


def test_every_second_image_is_reported() -> None:
    cases = [
        {
            (choice, share, what): [dice + 0.1 * (choice == DEFAULT)]
            for choice in (DEFAULT, ONE_CLICK)
            for share in SHARES
            for what in ("raw", STROKES_KEPT)
        }
        for dice in (0.1, 0.2, 0.3, 0.6)
    ]
    row = next(rows_of(cases))
    assert row["chosen_by"]["dice"] == pytest.approx([0.3] * len(SHARES))
    assert row["reported"]["dice"] == pytest.approx([0.5] * len(SHARES))
    assert row["reported"]["gain"] == pytest.approx([0.1] * len(SHARES))
    assert row["reported"]["gain_std"] == pytest.approx([0.0] * len(SHARES))
    assert row["reported"]["std"] == pytest.approx([0.2] * len(SHARES))


def test_no_candidate_uses_the_organ() -> None:
    assert not [choice for choice in CANDIDATES if choice.box == "organ"]
