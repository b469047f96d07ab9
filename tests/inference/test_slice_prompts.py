from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from baps.blackbox import Capabilities
from baps.inference.slice_prompts import group_by_slice, slicing_axis
from baps.prompts.volume_prompts import VolumeBox, VolumePoint, VolumePrompt, VolumeRegion
from tests.support.bright_pieces import BrightPiecesBlackBox

SHAPE = (20, 24, 12)
BOTH: Capabilities = BrightPiecesBlackBox().capabilities


def painted(where: tuple[object, ...], lasso: bool, include: bool = True) -> VolumeRegion:
    mask = np.zeros(SHAPE, np.uint8)
    mask[where] = 1
    return VolumeRegion.of(mask, (0, 0, 0), lasso, include)


@pytest.mark.parametrize("axis", range(3))
def test_slices_lie_across_the_axis_with_the_longest_voxels(axis: int) -> None:
    spacing = [0.7, 0.8, 0.75]
    spacing[axis] = 3.0
    flat: VolumePrompt = VolumeBox((3, 3, 3), (9, 9, 4), True)
    assert slicing_axis((40, 40, 40), spacing) == axis
    assert slicing_axis((40, 40, 40), spacing, [flat]) == axis


@pytest.mark.parametrize("axis", range(3))
def test_without_one_the_newest_flat_prompt_decides(axis: int) -> None:
    low, high = [3, 3, 3], [9, 9, 9]
    high[axis] = 4
    newest = VolumeBox((low[0], low[1], low[2]), (high[0], high[1], high[2]), True)
    older = VolumeBox((1, 1, 1), (5, 2, 5), True)
    click = VolumePoint((1, 1, 1), True)
    for spacing in ((1.0, 1.0, 1.1), None):
        assert slicing_axis((40, 40, 40), spacing, [older, newest, click]) == axis


def test_without_either_the_odd_size_decides_and_else_the_first_axis() -> None:
    assert slicing_axis((90, 512, 512), None) == 0
    assert slicing_axis((512, 512, 90), None) == 2
    assert slicing_axis((64, 96, 64), None) == 1
    assert slicing_axis((64, 64, 64), None) == 0
    assert slicing_axis((30, 40, 50), (1, 1, 1)) == 0


def test_clicks_of_several_slices_are_grouped() -> None:
    clicks = [VolumePoint((3, 4, 5), True), VolumePoint((6, 7, 5), False), VolumePoint((8, 9, 2), True)]
    groups, bounds = group_by_slice(clicks, SHAPE, BOTH)
    assert list(groups) == [2, 5]
    assert (groups[5].positive, groups[5].negative) == ([(3.0, 4.0)], [(6.0, 7.0)])
    assert (bounds.low, bounds.high) == ((0, 0, 0), SHAPE)


def test_a_flat_box_is_a_box_of_its_slice_and_bounds_nothing() -> None:
    groups, bounds = group_by_slice([VolumeBox((2, 3, 7), (9, 12, 8), True)], SHAPE, BOTH)
    assert groups[7].box == (2.0, 3.0, 8.0, 11.0)
    assert bounds.high == SHAPE


def test_a_box_of_several_slices_prompts_its_middle_and_bounds_the_object() -> None:
    box = VolumeBox((2, 3, 4), (9, 12, 9), True)
    groups, bounds = group_by_slice([box], SHAPE, BOTH)
    assert list(groups) == [6]
    assert (bounds.low, bounds.high) == (box.low, box.high)
    beyond = group_by_slice([box, VolumePoint((15, 5, 10), True)], SHAPE, BOTH)[1]
    assert (beyond.low, beyond.high) == ((2, 3, 4), (16, 12, 11))


def test_a_model_of_clicks_gets_a_click_in_the_middle_of_a_box() -> None:
    groups, _ = group_by_slice([VolumeBox((2, 3, 7), (9, 12, 8), True)], SHAPE, replace(BOTH, boxes=False))
    assert groups[7].box is None
    assert groups[7].positive == [(5.0, 7.0)]


def test_a_scribble_becomes_clicks_on_it_and_is_painted() -> None:
    scribble = painted((slice(3, 15), 8, 5), lasso=False)
    groups, _ = group_by_slice([scribble], SHAPE, BOTH)
    assert 1 <= len(groups[5].positive) <= 3
    strokes = groups[5].strokes
    assert strokes is not None
    assert strokes.sum() == 12
    assert all(strokes[round(y), round(x)] for x, y in groups[5].positive)


def test_a_scribble_across_another_axis_becomes_clicks_on_the_slices_that_it_crosses() -> None:
    groups, _ = group_by_slice([painted((9, slice(4, 6), slice(2, 11)), lasso=False)], SHAPE, BOTH)
    clicks = [(round(x), round(y), k) for k, group in groups.items() for x, y in group.positive]
    assert 1 <= len(clicks) <= 3
    assert all(x == 9 and y in (4, 5) and 2 <= k < 11 for x, y, k in clicks)


def test_a_lasso_that_is_drawn_as_a_line_is_filled() -> None:
    outline = np.zeros(SHAPE, bool)
    outline[4:12, 5:15, 6] = True
    outline[5:11, 6:14, 6] = False
    groups, _ = group_by_slice([VolumeRegion.of(outline, (0, 0, 0), True, True)], SHAPE, BOTH)
    lasso = groups[6].lasso
    assert lasso is not None
    assert lasso.sum() == 80


def test_a_lasso_across_another_axis_becomes_a_click_in_its_middle_and_bounds_the_object() -> None:
    groups, bounds = group_by_slice([painted((slice(4, 13), 9, slice(3, 8)), lasso=True)], SHAPE, BOTH)
    (k,) = groups
    assert k == 5
    ((x, y),) = groups[k].positive
    assert (4 < x < 12, y) == (True, 9)
    assert (bounds.low, bounds.high) == ((4, 0, 3), (13, SHAPE[1], 8))


@pytest.mark.parametrize("across", range(3))
def test_what_is_marked_as_beside_the_object_is_erased_across_every_axis(across: int) -> None:
    where: list[object] = [slice(3, 8), slice(3, 8), slice(3, 8)]
    where[across] = 4
    expected = np.zeros(SHAPE, bool)
    expected[tuple(where)] = True  # type: ignore[index]
    groups, _ = group_by_slice([painted(tuple(where), lasso=True, include=False)], SHAPE, BOTH)
    erased = np.zeros(SHAPE, bool)
    for k, group in groups.items():
        assert group.erased is not None
        erased[:, :, k] = group.erased.T
    assert np.array_equal(erased, expected)
