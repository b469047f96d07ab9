"""Properties of slices and canvases over axes, shapes, spacings and orientations."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from baps.errors import InputError
from baps.imaging.canvas import AXES, Canvas, Plane, plane_axis
from baps.imaging.volume import Volume
from baps.prompts import Prompt

ORIENTATIONS = [
    np.array(signs)[:, None] * np.eye(3)[list(order)]
    for order in itertools.permutations(range(3))
    for signs in itertools.product((-1, 1), repeat=3)
]


@st.composite
def _scenes(draw: st.DrawFn) -> tuple[Volume, tuple[int, int, int], int]:
    """Draw a volume at any of the 48 orientations, a voxel of it, and an axis."""
    shape = draw(st.tuples(*[st.integers(2, 70)] * 3))
    spacing = np.array(draw(st.tuples(*[st.floats(0.4, 6.0)] * 3)))
    affine = np.eye(4)
    affine[:3, :3] = draw(st.sampled_from(ORIENTATIONS)) * spacing
    affine[:3, 3] = draw(st.tuples(*[st.floats(-300, 300)] * 3))
    voxel = tuple(draw(st.integers(0, size - 1)) for size in shape)
    return Volume(np.zeros(shape, np.uint8), affine), voxel, draw(st.sampled_from(sorted(AXES.values())))  # type: ignore[return-value]


_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

IMAGE_SIZES = st.sampled_from([32, 100, 128, 256])


def _square_around(volume: Volume, voxel: tuple[int, int, int], plane: Plane, canvas: Canvas) -> np.ndarray:
    """Return a square of voxels around one, at least two pixels of the canvas to either side."""
    painted = np.zeros(volume.voxels.shape, bool)
    reach = dict.fromkeys(range(3), 0)
    in_plane = [axis for axis in range(3) if axis != plane.axis]
    for axis, factor in zip(in_plane, canvas.scale, strict=True):
        reach[axis] = math.ceil(2 / factor) + 1
    where = tuple(slice(max(0, v - reach[axis]), v + reach[axis] + 1) for axis, v in enumerate(voxel))
    painted[where] = True
    return painted


@given(scene=_scenes(), image_size=IMAGE_SIZES)
def test_a_square_drawn_and_restored_contains_its_voxel(
    scene: tuple[Volume, tuple[int, int, int], int], image_size: int
) -> None:
    volume, voxel, axis = scene
    plane = Plane(axis, voxel[axis])
    canvas = Canvas.fit(volume, plane, image_size)
    painted = _square_around(volume, voxel, plane, canvas)
    restored = np.zeros(volume.voxels.shape, bool)
    drawn = canvas.draw(plane.extract(painted))
    plane.insert(restored, canvas.restore(drawn) > 0.5)
    assert drawn.shape == (image_size, image_size)
    assert restored[voxel]
    others = np.delete(restored, voxel[axis], axis)
    assert not others.any()


@given(scene=_scenes(), image_size=IMAGE_SIZES)
def test_a_click_lands_inside_the_drawn_square(
    scene: tuple[Volume, tuple[int, int, int], int], image_size: int
) -> None:
    volume, voxel, axis = scene
    plane = Plane(axis, voxel[axis])
    canvas = Canvas.fit(volume, plane, image_size)
    drawn = canvas.draw(plane.extract(_square_around(volume, voxel, plane, canvas)))
    x, y = canvas.to_canvas(plane.project(voxel))
    assert -0.5 <= x <= canvas.width - 0.5
    assert -0.5 <= y <= canvas.height - 0.5
    column, row = min(max(round(x), 0), canvas.width - 1), min(max(round(y), 0), canvas.height - 1)
    assert drawn[row, column] > 0.5


@given(scene=_scenes(), image_size=IMAGE_SIZES)
def test_the_canvas_keeps_proportions_in_millimetres(
    scene: tuple[Volume, tuple[int, int, int], int], image_size: int
) -> None:
    volume, voxel, axis = scene
    canvas = Canvas.fit(volume, Plane(axis, voxel[axis]), image_size)
    # Of the remaining patient axes, the first (left-right, else back-front) is horizontal.
    towards = [int(np.abs(volume.affine[:3, axis_]).argmax()) for axis_ in range(3)]
    first, second = sorted((axis_ for axis_ in range(3) if axis_ != axis), key=lambda axis_: towards[axis_])
    across, down = (volume.shape[axis_] * volume.spacing[axis_] for axis_ in (first, second))
    assert max(canvas.width, canvas.height) == image_size
    assert min(canvas.width, canvas.height) >= 1
    scale = image_size / max(across, down)
    assert abs(canvas.width - across * scale) <= 1
    assert abs(canvas.height - down * scale) <= 1


@given(scene=_scenes())
def test_insert_writes_back_what_extract_copied(scene: tuple[Volume, tuple[int, int, int], int]) -> None:
    volume, voxel, axis = scene
    plane = Plane(axis, voxel[axis])
    voxels = np.random.default_rng(0).integers(0, 255, volume.voxels.shape)
    copy = np.zeros_like(voxels)
    for index in range(voxels.shape[axis]):
        extracted = Plane(axis, index).extract(voxels)
        Plane(axis, index).insert(copy, extracted)
    np.testing.assert_array_equal(copy, voxels)
    x, y = plane.project(voxel)
    assert plane.extract(voxels)[int(y), int(x)] == voxels[voxel]


@pytest.mark.parametrize(("axis", "expected"), [("I", (5, 6)), ("J", (4, 6)), ("K", (4, 5))])
def test_the_first_remaining_axis_runs_along_x(axis: str, expected: tuple[int, int]) -> None:
    assert Plane(AXES[axis], 0).project((4, 5, 6)) == expected
    rows, columns = Plane(AXES[axis], 0).extract(np.zeros((4, 5, 6))).shape
    assert (columns, rows) == expected


@pytest.mark.parametrize("index", [-1, 3, 100])
def test_a_slice_outside_the_volume_is_refused(index: int) -> None:
    with pytest.raises(InputError, match=f"Slice {index} lies outside .* 0 to 2"):
        Plane(2, index).extract(np.zeros((5, 4, 3)))


def test_the_slice_lies_in_the_upper_left_corner_and_the_rest_is_black() -> None:
    volume = Volume(np.full((20, 10, 1), 7, np.int16), _LPS)
    canvas = Canvas.fit(volume, Plane(2, 0), 40)
    assert (canvas.width, canvas.height, canvas.scale) == (40, 20, (2.0, 2.0))
    drawn = canvas.draw(Plane(2, 0).extract(volume.voxels))
    np.testing.assert_allclose(drawn[:20], 7)
    assert not drawn[20:].any()


def test_a_slice_of_the_same_size_is_drawn_unchanged() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16)).astype(np.int16)
    canvas = Canvas(16, 16, 16, 16, 16)
    np.testing.assert_array_equal(canvas.draw(pixels), pixels)
    np.testing.assert_array_equal(canvas.restore(pixels.astype(np.float32)), pixels)


def test_drawing_does_not_change_the_volume() -> None:
    voxels = np.random.default_rng(0).random((16, 16, 2)).astype(np.float32)
    before = voxels.copy()
    plane = Plane(2, 1)
    canvas = Canvas.fit(Volume(voxels, np.eye(4)), plane, 16)
    canvas.draw(plane.extract(voxels))[:] = 9
    canvas.restore(canvas.draw(plane.extract(voxels)))[:] = 9
    np.testing.assert_array_equal(voxels, before)


@pytest.mark.parametrize("columns", [1, 2])
def test_a_canvas_one_pixel_wide(columns: int) -> None:
    """PyTorch's antialiased resize fails on a slice of one column, or one far longer than wide."""
    volume = Volume(np.zeros((columns, 8, 1), np.int16), np.diag([1.0, 6.0 * columns, 1.0, 1.0]))
    canvas = Canvas.fit(volume, Plane(2, 0), 32)
    assert (canvas.width, canvas.height) == (1, 32)
    pixels = np.zeros((8, columns), np.int16)
    pixels[1:6] = 1
    drawn = canvas.draw(pixels)
    assert drawn[14, 0] > 0.5
    assert canvas.restore(drawn)[3, 0] > 0.5


@st.composite
def _stored_orders(draw: st.DrawFn) -> tuple[Volume, Volume, tuple[int, int, int], tuple[int, int, int], str]:
    """Draw one image, up to 20 degrees oblique, stored in two orders of axes and directions, one voxel in both, and a
    plane."""
    shape = draw(st.tuples(*[st.integers(2, 24)] * 3))
    affine = np.eye(4)
    angles = draw(st.tuples(*[st.floats(-20, 20)] * 3))
    spacing = np.array(draw(st.tuples(*[st.floats(0.5, 5.0)] * 3)))
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    voxels = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 200, shape).astype(np.int16)
    voxel = tuple(draw(st.integers(0, size - 1)) for size in shape)
    marked = np.zeros(shape, bool)
    marked[voxel] = True
    order = draw(st.permutations(range(3)))
    turn = np.stack([order, draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))], 1)
    axis_ = Volume(nibabel.apply_orientation(voxels, turn), affine @ nibabel.orientations.inv_ornt_aff(turn, shape))
    (there,) = np.argwhere(nibabel.apply_orientation(marked, turn))
    plane = draw(st.sampled_from(["axial", "coronal", "sagittal"]))
    return Volume(voxels, affine), axis_, voxel, tuple(map(int, there)), plane  # type: ignore[return-value]


@given(scene=_stored_orders(), image_size=IMAGE_SIZES)
def test_canvas_does_not_depend_on_the_storage_order(
    scene: tuple[Volume, Volume, tuple[int, int, int], tuple[int, int, int], str], image_size: int
) -> None:
    one, axis_, here, there, name = scene
    shown = []
    for volume, voxel in ((one, here), (axis_, there)):
        plane = Plane(axis := plane_axis(volume.affine, name), voxel[axis])
        canvas = Canvas.fit(volume, plane, image_size)
        corner = plane.project(tuple(max(0, v - 1) for v in voxel))  # type: ignore[arg-type]
        x, y = plane.project(voxel)
        box = (min(x, corner[0]), min(y, corner[1]), x, y)
        shown.append((canvas.draw(plane.extract(volume.voxels)), Prompt(((x, y),), box=box).mapped(canvas.to_canvas)))
    np.testing.assert_allclose(shown[0][0], shown[1][0], atol=0.02)
    np.testing.assert_allclose(shown[0][1].positive, shown[1][1].positive, atol=1e-3)


@pytest.mark.parametrize(
    ("plane", "right", "top"), [("axial", "left", "front"), ("coronal", "left", "head"), ("sagittal", "back", "head")]
)
def test_slice_is_oriented_as_a_radiologist_views_it(plane: str, right: str, top: str) -> None:
    """The patient's left is brightest on the right of the canvas, and so on, in each of the 48 orders of storage."""
    assert len(ORIENTATIONS) == 48
    index = np.stack(np.meshgrid(*map(np.arange, (9, 9, 9)), indexing="ij"), -1)
    for number, orientation in enumerate(ORIENTATIONS):
        affine = np.eye(4)
        affine[:3, :3] = orientation
        r, a, s = np.moveaxis(index @ affine[:3, :3].T, -1, 0)
        sides = {"left": -r, "back": -a, "front": a, "head": s}
        for direction, (bright, dim) in {right: ((8, 16), (8, 0)), top: ((0, 8), (16, 8))}.items():
            volume = Volume(sides[direction], affine)
            cut = Plane(plane_axis(affine, plane), 4)
            canvas = Canvas.fit(volume, cut, 17)
            drawn = canvas.draw(cut.extract(volume.voxels))
            assert drawn[bright] > drawn[dim], (number, direction)


def test_planes_by_name() -> None:
    assert [plane_axis(_LPS, name) for name in ("", "as stored", "I", "J", "K")] == [2, 2, 0, 1, 2]
    rotated = np.eye(4)
    rotated[:3, :3] = [[0, 0, 1], [1, 0, 0], [0, 1, 0]]  # I to the front, J to the head, K to the right.
    assert [plane_axis(rotated, name) for name in ("coronal", "axial", "sagittal")] == [0, 1, 2]
    with pytest.raises(InputError, match="no plane 'frontal'.*sagittal"):
        plane_axis(rotated, "frontal")


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_slice_is_extracted_without_a_copy_of_the_volume(axis: int, order: str) -> None:
    voxels = np.zeros((200, 180, 90), np.int16, order=order)  # type: ignore[call-overload]
    tracemalloc.start()
    try:
        result = Plane(axis, 50).extract(voxels)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * result.nbytes < voxels.nbytes / 10
    assert not np.shares_memory(result, voxels)
