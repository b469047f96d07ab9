from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from baps.errors import InputError
from baps.simulated_prompts import draw_prompt


def _random_mask(seed: int) -> NDArray[np.bool_]:
    random = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(random.normal(size=(30, 45)), 3)
    mask: NDArray[np.bool_] = field > np.quantile(field, random.uniform(0.5, 0.995))
    return mask


@given(st.integers(0, 10_000))
def test_a_click_lies_inside_the_largest_piece(seed: int) -> None:
    mask = _random_mask(seed)
    prompt = draw_prompt(mask, "click", np.random.default_rng(seed))
    ((x, y),) = prompt.positive
    assert x == int(x)
    assert y == int(y)
    assert prompt.negative == ()
    assert prompt.box is None
    pieces, _ = ndimage.label(mask)
    sizes = np.bincount(pieces.ravel())[1:]
    hit = pieces[int(y), int(x)]
    assert hit > 0
    assert sizes[hit - 1] == sizes.max()


def test_a_click_is_well_inside() -> None:
    mask = np.zeros((41, 41), bool)
    mask[5:36, 5:36] = True
    depth = ndimage.distance_transform_edt(mask)
    for seed in range(30):
        ((x, y),) = draw_prompt(mask, "click", np.random.default_rng(seed)).positive
        assert depth[int(y), int(x)] >= depth.max() / 2


def test_the_edge_of_the_image_counts_as_an_edge() -> None:
    mask = np.ones((21, 21), bool)
    for seed in range(30):
        ((x, y),) = draw_prompt(mask, "click", np.random.default_rng(seed)).positive
        assert 4 <= x <= 16
        assert 4 <= y <= 16


def test_a_mask_of_one_pixel_can_be_prompted() -> None:
    mask = np.zeros((9, 12), bool)
    mask[3, 7] = True
    assert draw_prompt(mask, "click", np.random.default_rng(0)).positive == ((7.0, 3.0),)
    box = draw_prompt(mask, "box", np.random.default_rng(0)).box
    assert box is not None
    np.testing.assert_allclose(box, (7, 3, 7, 3), atol=0.11)


@given(st.integers(0, 10_000))
def test_a_box_covers_the_object_but_for_a_tenth_of_the_side(seed: int) -> None:
    mask = _random_mask(seed)
    box = draw_prompt(mask, "box", np.random.default_rng(seed)).box
    assert box is not None
    rows, columns = np.nonzero(mask)
    tight = np.array([columns.min(), rows.min(), columns.max(), rows.max()])
    side = np.tile(tight[2:] - tight[:2] + 1, 2)
    assert (np.abs(np.array(box) - tight) <= 0.1 * side + 1e-9).all()
    assert 0 <= box[0] <= box[2] <= mask.shape[1] - 1
    assert 0 <= box[1] <= box[3] <= mask.shape[0] - 1


@pytest.mark.parametrize("kind", ["click", "box"])
def test_fixed_by_the_seed(kind: str) -> None:
    mask = _random_mask(3)
    drawn = [draw_prompt(mask, kind, np.random.default_rng(seed)) for seed in (5, 5, 6, 7, 8)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 2


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(InputError, match="empty mask"):
        draw_prompt(np.zeros((4, 4), bool), "click", np.random.default_rng(0))


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="'scribble'.*click, box"):
        draw_prompt(np.ones((4, 4), bool), "scribble", np.random.default_rng(0))
