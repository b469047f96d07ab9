"""Prompts in cubes lie where they lie in the volume."""

from __future__ import annotations

import numpy as np
import pytest

from baps.imaging.cube import Cube
from baps.prompts.in_cube import marked_extent, move_to_cube, paint_in_cube
from baps.prompts.volume_prompts import VolumeBox, VolumePoint, VolumePrompt, VolumeRegion

SHAPE = (40, 36, 20)
SPACING = (0.8, 1.1, 2.5)
FINE = Cube.around(np.array([20.0, 18, 9]), 24.0, SPACING, 48)
COARSE = Cube.around(np.array([20.0, 18, 9]), 32.0, SPACING, 16)


def painted(where: tuple[slice, ...], lasso: bool, include: bool = True) -> VolumeRegion:
    mask = np.zeros(SHAPE, np.uint8)
    mask[where] = 1
    return VolumeRegion.of(mask, (0, 0, 0), lasso, include)


@pytest.mark.parametrize("cube", [FINE, COARSE])
def test_a_point_is_marked_at_the_nearest_voxel(cube: Cube) -> None:
    marked = paint_in_cube(cube, [VolumePoint((22, 15, 10), True)])
    (voxel,) = np.argwhere(marked)
    back = voxel * np.array(cube.step) + cube.first
    assert (np.abs(back - (22, 15, 10)) <= np.array(cube.step) / 2 + 1e-9).all()


def test_points_outside_are_left_out() -> None:
    assert move_to_cube(VolumePoint((0, 0, 0), True), FINE) is None
    assert move_to_cube(VolumeBox((0, 0, 0), (2, 2, 2), True), FINE) is None
    assert move_to_cube(painted((slice(0, 2), slice(0, 2), slice(0, 1)), False), FINE) is None


@pytest.mark.parametrize("cube", [FINE, COARSE])
def test_a_box_covers_the_same_part(cube: Cube) -> None:
    box = VolumeBox((14, 12, 6), (26, 24, 12), True)
    mask = np.zeros(SHAPE, np.float32)
    mask[14:26, 12:24, 6:12] = 1
    filled = paint_in_cube(cube, [box])
    assert np.abs(filled.sum() / cube.extract(mask, 0.0).sum() - 1) < 0.2
    assert (filled[cube.extract(mask, 0.0) > 0.9] == 1).all()


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("cube", [FINE, COARSE])
def test_what_lies_in_one_slice_remains_in_one_slice_or_its_thickness(axis: int, cube: Cube) -> None:
    low, high = [14, 12, 6], [26, 24, 12]
    low[axis], high[axis] = 10, 11
    box = move_to_cube(VolumeBox((low[0], low[1], low[2]), (high[0], high[1], high[2]), True), cube)
    assert isinstance(box, VolumeBox)
    assert abs(box.high[axis] - box.low[axis] - max(1, 1 / cube.step[axis])) <= 1
    where = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    lasso = paint_in_cube(cube, [painted(where, True)])
    assert lasso.any((0, 1, 2)[:axis] + (0, 1, 2)[axis + 1 :]).sum() <= max(1, np.ceil(1 / cube.step[axis])) + 1


@pytest.mark.parametrize("cube", [FINE, COARSE])
def test_a_lasso_is_filled_and_a_scribble_is_not(cube: Cube) -> None:
    ring = np.zeros(SHAPE, np.uint8)
    ring[14:27, 12:25, 9] = 1
    ring[15:26, 13:24, 9] = 0
    lasso = paint_in_cube(cube, [VolumeRegion.of(ring, (0, 0, 0), True, True)])
    scribble = paint_in_cube(cube, [VolumeRegion.of(ring, (0, 0, 0), False, True)])
    middle = tuple(np.round(cube.positions(np.array([[20, 18, 9]]))[0]).astype(int))
    assert lasso[middle] == 1
    assert scribble[middle] == 0
    assert (lasso >= scribble).all()
    assert scribble.any()


def test_a_scribble_has_no_gaps_where_the_cube_is_finer() -> None:
    line = painted((slice(12, 28), slice(18, 19), slice(9, 10)), False)
    marked = paint_in_cube(FINE, [line])
    along = np.flatnonzero(marked.any((1, 2)))
    assert np.array_equal(along, np.arange(along[0], along[-1] + 1))
    assert len(along) >= 16 / FINE.step[0] - 1


def test_the_extent_counts_only_what_marks_the_object() -> None:
    prompts: list[VolumePrompt] = [
        VolumePoint((10, 11, 12), True),
        VolumePoint((0, 0, 0), False),
        VolumeBox((12, 12, 5), (15, 16, 6), True),
        painted((slice(8, 9), slice(20, 22), slice(7, 8)), False),
    ]
    low, high = marked_extent(prompts)
    assert low.tolist() == [8, 11, 5]
    assert high.tolist() == [14, 21, 12]
    mask = np.zeros(SHAPE, bool)
    mask[30, 30, 19] = True
    assert marked_extent(prompts, mask)[1].tolist() == [30, 30, 19]
