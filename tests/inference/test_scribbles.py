from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from baps.blackbox import Capabilities
from baps.errors import InputError
from baps.inference.scribbles import MAX_NEGATIVE, MAX_POSITIVE, choose_clicks, keep_strokes, strokes_to_prompt
from baps.prompts import Prompt


def _strokes(seed: int) -> NDArray[np.bool_]:
    """Draw some brush strokes, (30, 45)."""
    random = np.random.default_rng(seed)
    strokes = np.zeros((30, 45), bool)
    for _ in range(random.integers(1, 4)):
        start, end = random.uniform((0, 0), (29, 44), (2, 2))
        for t in np.linspace(0, 1, 50):
            strokes[tuple(np.rint(start + t * (end - start)).astype(int))] = True
    wide: NDArray[np.bool_] = ndimage.binary_dilation(strokes, iterations=int(random.integers(0, 3)) or 1)
    return wide


@given(st.integers(0, 10_000), st.integers(0, 12))
def test_clicks_are_on_strokes_and_limited(seed: int, max_clicks: int) -> None:
    strokes = _strokes(seed)
    clicks = choose_clicks(strokes, max_clicks)
    assert min(max_clicks, 1) <= len(clicks) == len(set(clicks)) <= max_clicks
    assert all(strokes[int(y), int(x)] and (x, y) == (int(x), int(y)) for x, y in clicks)


@given(st.integers(0, 10_000))
def test_clicks_move_with_the_strokes(seed: int) -> None:
    strokes = _strokes(seed)
    moved = np.pad(strokes, ((7, 2), (3, 5)))
    clicks = choose_clicks(strokes, 4)
    assert choose_clicks(strokes.copy(), 4) == clicks
    assert choose_clicks(moved, 4) == tuple((x + 3, y + 7) for x, y in clicks)


@pytest.mark.parametrize("max_clicks", [1, 2, 4, 5])
def test_clicks_are_in_the_centres_of_equal_parts(max_clicks: int) -> None:
    strokes = np.zeros((9, 140), bool)
    strokes[3:6, 10:130] = True
    clicks = sorted(choose_clicks(strokes, max_clicks))
    expected = 10 + 120 * (np.arange(max_clicks) + 0.5) / max_clicks
    assert [y for _, y in clicks] == [4.0] * max_clicks
    np.testing.assert_allclose([x for x, _ in clicks], expected, atol=5)


def test_every_stroke_gets_a_click_if_possible() -> None:
    strokes = np.zeros((30, 60), bool)
    for column in (5, 30, 55):
        strokes[10:20, column - 1 : column + 2] = True
    nearest = {min((5, 30, 55), key=lambda column: abs(column - x)) for x, _ in choose_clicks(strokes, 3)}
    assert nearest == {5, 30, 55}


@pytest.mark.parametrize("max_clicks", [1, 2, 3, 4])
def test_stroke_of_few_pixels_gives_as_many_clicks(max_clicks: int) -> None:
    strokes = np.zeros((5, 5), bool)
    strokes[2, 1:3] = True
    assert len(choose_clicks(strokes, max_clicks)) == min(max_clicks, 2)


ALL = Capabilities("all", "", True, True, True, True, 1, 64)


@given(st.integers(0, 10_000))
def test_a_prompt_has_both_kinds_of_clicks_and_no_box(seed: int) -> None:
    foreground, background = _strokes(seed), _strokes(seed + 1)
    expected = Prompt(choose_clicks(foreground, MAX_POSITIVE), choose_clicks(background, MAX_NEGATIVE))
    assert strokes_to_prompt(foreground, background, ALL) == expected
    assert strokes_to_prompt(foreground, background, ALL, (1, 2, 30, 20)) == expected


@given(st.integers(0, 10_000))
def test_black_box_for_boxes_gets_the_box_around_the_strokes(seed: int) -> None:
    foreground = _strokes(seed)
    capabilities = replace(ALL, clicks=False)
    box = strokes_to_prompt(foreground, np.zeros_like(foreground), capabilities).box
    assert box is not None
    x0, y0, x1, y1 = (int(edge) for edge in box)
    assert foreground[y0 : y1 + 1, x0 : x1 + 1].sum() == foreground.sum()
    for edge in (foreground[y0], foreground[y1], foreground[:, x0], foreground[:, x1]):
        assert edge.any()
    assert strokes_to_prompt(foreground, foreground, capabilities, (1, 2, 30, 20)).box == (1, 2, 30, 20)


def test_missing_foreground_stroke_is_an_error() -> None:
    background = np.ones((8, 8), bool)
    with pytest.raises(InputError, match="no foreground stroke. Paint over the organ"):
        strokes_to_prompt(np.zeros_like(background), background, ALL)


def test_strokes_of_two_slices_are_refused() -> None:
    with pytest.raises(InputError, match="one shape"):
        strokes_to_prompt(np.ones((8, 8), bool), np.ones((8, 9), bool), ALL)


def test_strokes_are_kept_in_the_mask() -> None:
    answer, foreground, background = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0]], bool)
    assert keep_strokes(answer, foreground, background).tolist() == [True, False, True, False]
