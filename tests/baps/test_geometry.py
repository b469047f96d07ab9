"""Properties of slices and canvases over axes, shapes, spacings and orientations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baps.blackbox import Prompt
from baps.errors import InputError
from baps.geometry import AXES, Canvas, Plane
from baps.volume import Volume

ORIENTATIONS = [
    np.array(signs)[:, None] * np.eye(3)[list(order)]
    for order in itertools.permutations(range(3))
    for signs in itertools.product((-1, 1), repeat=3)
]


@st.composite
def _scenes(draw: st.DrawFn) -> tuple[Volume, tuple[int, int, int], int]:
    """A volume at any of the 48 orientations, a voxel of it, and an axis."""
    shape = draw(st.tuples(*[st.integers(2, 70)] * 3))
    spacing = np.array(draw(st.tuples(*[st.floats(0.4, 6.0)] * 3)))
    affine = np.eye(4)
    affine[:3, :3] = draw(st.sampled_from(ORIENTATIONS)) * spacing
    affine[:3, 3] = draw(st.tuples(*[st.floats(-300, 300)] * 3))
    voxel = tuple(draw(st.integers(0, size - 1)) for size in shape)
    return Volume(np.zeros(shape, np.uint8), affine), voxel, draw(st.sampled_from(sorted(AXES.values())))  # type: ignore[return-value]


SIDES = st.sampled_from([32, 100, 128, 256])


def _square_around(volume: Volume, voxel: tuple[int, int, int], plane: Plane, canvas: Canvas) -> np.ndarray:
    """A square of voxels around one, at least two pixels of the canvas to either side."""
    painted = np.zeros(volume.voxels.shape, bool)
    reach = dict.fromkeys(range(3), 0)
    in_plane = [axis for axis in range(3) if axis != plane.axis]
    for axis, factor in zip(in_plane, canvas.scale, strict=True):
        reach[axis] = math.ceil(2 / factor) + 1
    where = tuple(slice(max(0, v - reach[axis]), v + reach[axis] + 1) for axis, v in enumerate(voxel))
    painted[where] = True
    return painted


@given(scene=_scenes(), side=SIDES)
def test_a_square_drawn_and_restored_contains_its_voxel(
    scene: tuple[Volume, tuple[int, int, int], int], side: int
) -> None:
    volume, voxel, axis = scene
    plane = Plane(axis, voxel[axis])
    canvas = Canvas.fit(volume, plane, side)
    painted = _square_around(volume, voxel, plane, canvas)
    restored = np.zeros(volume.voxels.shape, bool)
    drawn = canvas.draw(plane.of(painted))
    plane.put(restored, canvas.restore(drawn) > 0.5)
    assert drawn.shape == (side, side)
    assert restored[voxel]
    others = np.delete(restored, voxel[axis], axis)
    assert not others.any()


@given(scene=_scenes(), side=SIDES)
def test_a_click_lands_inside_the_drawn_square(scene: tuple[Volume, tuple[int, int, int], int], side: int) -> None:
    volume, voxel, axis = scene
    plane = Plane(axis, voxel[axis])
    canvas = Canvas.fit(volume, plane, side)
    drawn = canvas.draw(plane.of(_square_around(volume, voxel, plane, canvas)))
    ((x, y),) = Prompt((plane.flatten(voxel),)).scaled(*canvas.scale).positive
    assert -0.5 <= x <= canvas.width - 0.5
    assert -0.5 <= y <= canvas.height - 0.5
    column, row = min(max(round(x), 0), canvas.width - 1), min(max(round(y), 0), canvas.height - 1)
    assert drawn[row, column] > 0.5


@given(scene=_scenes(), side=SIDES)
def test_the_canvas_keeps_proportions_in_millimetres(
    scene: tuple[Volume, tuple[int, int, int], int], side: int
) -> None:
    volume, voxel, axis = scene
    canvas = Canvas.fit(volume, Plane(axis, voxel[axis]), side)
    step_x, step_y = (step for other, step in enumerate(volume.spacing) if other != axis)
    across, down = canvas.columns * step_x, canvas.rows * step_y
    assert max(canvas.width, canvas.height) == side
    assert min(canvas.width, canvas.height) >= 1
    scale = side / max(across, down)
    assert abs(canvas.width - across * scale) <= 1
    assert abs(canvas.height - down * scale) <= 1


@given(scene=_scenes())
def test_put_writes_back_what_of_took(scene: tuple[Volume, tuple[int, int, int], int]) -> None:
    volume, voxel, axis = scene
    plane = Plane(axis, voxel[axis])
    voxels = np.random.default_rng(0).integers(0, 255, volume.voxels.shape)
    copy = np.zeros_like(voxels)
    for index in range(voxels.shape[axis]):
        taken = Plane(axis, index).of(voxels)
        Plane(axis, index).put(copy, taken)
    np.testing.assert_array_equal(copy, voxels)
    x, y = plane.flatten(voxel)
    assert plane.of(voxels)[int(y), int(x)] == voxels[voxel]


@pytest.mark.parametrize(("axis", "expected"), [("I", (5, 6)), ("J", (4, 6)), ("K", (4, 5))])
def test_the_first_remaining_axis_runs_along_x(axis: str, expected: tuple[int, int]) -> None:
    assert Plane(AXES[axis], 0).flatten((4, 5, 6)) == expected
    rows, columns = Plane(AXES[axis], 0).of(np.zeros((4, 5, 6))).shape
    assert (columns, rows) == expected


@pytest.mark.parametrize("index", [-1, 3, 100])
def test_a_slice_outside_the_volume_is_refused(index: int) -> None:
    with pytest.raises(InputError, match=f"Slice {index} lies outside .* 0 to 2"):
        Plane(2, index).of(np.zeros((5, 4, 3)))


def test_the_slice_lies_in_the_upper_left_corner_and_the_rest_is_black() -> None:
    volume = Volume(np.full((20, 10, 1), 7, np.int16), np.eye(4))
    canvas = Canvas.fit(volume, Plane(2, 0), 40)
    assert (canvas.width, canvas.height, canvas.scale) == (40, 20, (2.0, 2.0))
    drawn = canvas.draw(Plane(2, 0).of(volume.voxels))
    np.testing.assert_allclose(drawn[:20], 7)
    assert not drawn[20:].any()


def test_a_slice_of_the_same_size_is_drawn_unchanged() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16)).astype(np.int16)
    canvas = Canvas(16, 16, 16, 16, 16)
    np.testing.assert_array_equal(canvas.draw(pixels), pixels)
    np.testing.assert_array_equal(canvas.restore(pixels.astype(np.float32)), pixels)


def test_drawing_leaves_the_volume_alone() -> None:
    voxels = np.random.default_rng(0).random((16, 16, 2)).astype(np.float32)
    before = voxels.copy()
    plane = Plane(2, 1)
    canvas = Canvas.fit(Volume(voxels, np.eye(4)), plane, 16)
    canvas.draw(plane.of(voxels))[:] = 9
    canvas.restore(canvas.draw(plane.of(voxels)))[:] = 9
    np.testing.assert_array_equal(voxels, before)


@pytest.mark.parametrize("columns", [1, 2])
def test_a_canvas_one_pixel_wide(columns: int) -> None:
    """A slice of one column, or one far longer than wide; PyTorch's antialiased resize fails on it."""
    volume = Volume(np.zeros((columns, 8, 1), np.int16), np.diag([1.0, 6.0 * columns, 1.0, 1.0]))
    canvas = Canvas.fit(volume, Plane(2, 0), 32)
    assert (canvas.width, canvas.height) == (1, 32)
    pixels = np.zeros((8, columns), np.int16)
    pixels[1:6] = 1
    drawn = canvas.draw(pixels)
    assert drawn[14, 0] > 0.5
    assert canvas.restore(drawn)[3, 0] > 0.5
