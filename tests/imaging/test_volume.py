from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from baps.imaging.volume import Volume

AFFINE = np.diag([-0.7, 0.8, 2.5, 1.0])


@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    steps=st.tuples(*[st.floats(0.2, 8)] * 3),
    sign=st.sampled_from([-1, 1]),
)
def test_spacing_is_the_distance_of_neighbouring_voxels(
    angles: tuple[float, ...], steps: tuple[float, ...], sign: int
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * steps * sign
    affine[:3, 3] = (5, 6, 7)
    spacing = Volume(np.zeros((1, 1, 1), np.uint8), affine).spacing
    assert spacing == pytest.approx(steps)
    origin = affine @ (0, 0, 0, 1)
    assert np.linalg.norm(affine @ (0, 1, 0, 1) - origin) == pytest.approx(spacing[1])


def test_grey_and_colour() -> None:
    grey = Volume(np.zeros((3, 4, 5), np.int16), AFFINE)
    colour = Volume(np.zeros((3, 4, 5, 3), np.uint8), AFFINE)
    assert (grey.shape, grey.colour) == ((3, 4, 5), False)
    assert (colour.shape, colour.colour) == ((3, 4, 5), True)
    assert grey.same_geometry(colour)


@pytest.mark.parametrize(
    ("shape", "shift", "same"),
    [((3, 4, 5), 0.0, True), ((3, 4, 5), 0.079, True), ((3, 4, 5), 0.081, False), ((3, 4, 6), 0.0, False)],
)
def test_same_geometry(shape: tuple[int, ...], shift: float, same: bool) -> None:
    moved = AFFINE.copy()
    moved[1, 3] += shift
    volume = Volume(np.zeros((3, 4, 5), np.int16), AFFINE)
    assert volume.same_geometry(Volume(np.zeros(shape, np.uint8), moved)) is same


@pytest.mark.parametrize(("slices", "same"), [(5, True), (500, False)])
def test_a_rotation_moves_the_far_end_of_a_long_volume(slices: int, same: bool) -> None:
    rotated = AFFINE.copy()
    rotated[:3] = Rotation.from_euler("x", 0.01, degrees=True).as_matrix() @ AFFINE[:3]
    voxels = np.zeros((3, 4, slices), np.uint8)
    assert Volume(voxels, AFFINE).same_geometry(Volume(voxels, rotated)) is same


def test_small_voxels_are_distinguished() -> None:
    affine = np.diag([-0.0003, 0.0003, 0.0003, 1.0])
    moved = affine.copy()
    moved[0, 3] += 0.0003
    voxels = np.zeros((3, 4, 5), np.uint8)
    assert not Volume(voxels, affine).same_geometry(Volume(voxels, moved))


def test_the_thickness_of_a_single_slice_is_ignored() -> None:
    voxels = np.zeros((3, 4, 1), np.uint8)
    assert Volume(voxels, AFFINE).same_geometry(Volume(voxels, AFFINE @ np.diag([1, 1, 3, 1])))
    assert not Volume(voxels, AFFINE).same_geometry(Volume(voxels, AFFINE @ np.diag([1, 3, 1, 1])))
