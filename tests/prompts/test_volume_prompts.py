from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from baps.errors import InputError
from baps.prompts.volume_prompts import VolumeBox, VolumePoint, VolumeRegion, bounding_box, fill_lasso

SHAPE = (20, 24, 12)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_prompts_move_with_the_axes(order: tuple[int, ...]) -> None:
    mask = np.random.default_rng(3).random(SHAPE) > 0.7
    region = VolumeRegion.of(mask[4:9, 2:8, 1:7], (4, 2, 1), False, True).moved(order)
    again = np.zeros([SHAPE[axis] for axis in order], bool)
    again[tuple(slice(low, low + size) for low, size in zip(region.low, region.shape, strict=True))] = region.unpack()
    expected = np.zeros(SHAPE, bool)
    expected[4:9, 2:8, 1:7] = mask[4:9, 2:8, 1:7]
    assert np.array_equal(again, expected.transpose(order))
    assert VolumePoint((5, 6, 7), True).moved(order).voxel == tuple((5, 6, 7)[axis] for axis in order)
    box = VolumeBox((1, 2, 3), (4, 6, 9), False).moved(order)
    assert (box.low, box.high) == (tuple((1, 2, 3)[a] for a in order), tuple((4, 6, 9)[a] for a in order))


def test_an_empty_scribble_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        VolumeRegion.of(np.zeros(SHAPE), (0, 0, 0), False, True)


@pytest.mark.parametrize("lasso", [False, True])
def test_a_region_keeps_what_was_painted_and_nothing_around_it(lasso: bool) -> None:
    painted = np.zeros((9, 8, 7), np.uint8)
    painted[2:5, 3, 4:6] = 7
    region = VolumeRegion.of(painted, (10, 11, 2), lasso, True)
    assert (region.low, region.shape, region.flat_axis) == ((12, 14, 6), (3, 1, 2), 1)
    assert region.unpack().all()
    assert region.nbytes == 1


def test_flat_prompts_tell_their_axis() -> None:
    assert VolumeBox((1, 1, 1), (5, 5, 2), True).flat_axis == 2
    assert VolumeBox((1, 1, 1), (5, 5, 5), True).flat_axis is None
    assert VolumeBox((1, 1, 1), (5, 2, 2), True).flat_axis is None  # A line lies in two slices.
    assert VolumePoint((1, 1, 1), True).flat_axis is None


def test_the_bounding_box_of_nothing_is_none() -> None:
    assert bounding_box(np.zeros(SHAPE, bool)) is None


@pytest.mark.parametrize("axis", range(3))
def test_a_lasso_is_filled_across_its_axis(axis: int) -> None:
    outline = np.zeros((6, 6, 1), bool)
    outline[1:5, 1:5] = True
    filled = outline.copy()
    outline[2:4, 2:4] = False
    assert np.array_equal(fill_lasso(np.moveaxis(outline, 2, axis), axis), np.moveaxis(filled, 2, axis))
