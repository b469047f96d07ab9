"""Cubes of volumes, judged by SimpleITK's resampling."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK

from baps.imaging.cube import Cube

SPACING = (0.8, 1.1, 2.5)


def smooth_volume(shape: tuple[int, int, int] = (40, 36, 20)) -> np.ndarray:
    x, y, z = np.meshgrid(*(np.linspace(0, 3, size) for size in shape), indexing="ij")
    return (100 * np.sin(x) + 50 * np.cos(1.3 * y) + 30 * np.sin(z + x)).astype(np.float32)


def resampled_by_itk(voxels: np.ndarray, cube: Cube) -> np.ndarray:
    """Resample linearly at the cube's voxels; the arrays of SimpleITK have the axes in reverse order."""
    image = SimpleITK.GetImageFromArray(voxels.transpose())
    image.SetSpacing(SPACING)
    resampler = SimpleITK.ResampleImageFilter()
    resampler.SetSize([cube.side] * 3)
    resampler.SetOutputSpacing([step * one for step, one in zip(cube.step, SPACING, strict=True)])
    resampler.SetOutputOrigin([first * one for first, one in zip(cube.first, SPACING, strict=True)])
    resampler.SetInterpolator(SimpleITK.sitkLinear)
    resampler.SetDefaultPixelValue(-999)
    return SimpleITK.GetArrayFromImage(resampler.Execute(image)).transpose()


def test_enlarged_voxels_are_interpolated_linearly() -> None:
    voxels, centre = smooth_volume(), np.array([20.0, 18, 9])
    cube = Cube.around(centre, 12.0, SPACING, 16)
    assert np.allclose(cube.extract(voxels), resampled_by_itk(voxels, cube), atol=1e-3)


def test_reduced_voxels_are_averages_at_the_same_positions() -> None:
    voxels, centre = smooth_volume(), np.array([20.0, 18, 9])
    cube = Cube.around(centre, 24.0, SPACING, 8)  # Voxels of 3 mm.
    difference = cube.extract(voxels) - resampled_by_itk(voxels, cube)
    assert np.abs(difference).max() < 4  # Of a range of 300; a shift by one voxel of the volume makes more than 8.
    noise = np.random.default_rng(0).normal(size=voxels.shape).astype(np.float32)
    assert cube.extract(noise).std() < 0.6 * resampled_by_itk(noise, cube).std()


def test_outside_the_volume() -> None:
    voxels = smooth_volume() + 500
    cube = Cube.around(np.array([0.0, 18, 9]), 20.0, SPACING, 16)
    itk = resampled_by_itk(voxels, cube)
    outside = cube.extract(voxels, outside=-999.0) == -999
    assert np.array_equal(outside, (itk == -999) & outside)
    assert outside[:7].all()
    assert not outside[9:].any()
    darkest = cube.extract(voxels)
    assert darkest[0, 0, 0] == darkest.min() > 300


def test_a_cube_beside_the_volume_is_empty() -> None:
    cube = Cube.around(np.array([-100.0, 18, 9]), 20.0, SPACING, 8)
    assert not cube.extract(smooth_volume(), outside=0.0).any()
    assert not cube.insert(np.ones((8, 8, 8), np.float32), (40, 36, 20)).any()


@pytest.mark.parametrize("side", [16, 32])
def test_a_mask_comes_back_to_where_it_was(side: int) -> None:
    x, y, z = np.meshgrid(*map(np.arange, (40, 36, 20)), indexing="ij")
    ball = ((x - 20) * SPACING[0]) ** 2 + ((y - 18) * SPACING[1]) ** 2 + ((z - 9) * SPACING[2]) ** 2 < 8**2
    cube = Cube.around(np.array([22.0, 17, 9.5]), 28.0, SPACING, side)
    back = cube.insert(cube.extract(ball, 0.0), ball.shape) > 0.5
    overlap = 2 * (back & ball).sum() / (back.sum() + ball.sum())
    assert overlap > {16: 0.9, 32: 0.95}[side]
    centre = [np.argwhere(mask).mean(0) for mask in (back, ball)]
    assert np.abs(centre[0] - centre[1]).max() < 0.15


def test_insert_writes_only_inside_the_cube() -> None:
    cube = Cube.around(np.array([20.0, 18, 9]), 12.0, SPACING, 16)
    inserted = cube.insert(np.ones((16, 16, 16), np.float32), (40, 36, 20))
    part = cube.part((40, 36, 20))
    assert inserted[part].min() == 1
    inserted[part] = 0
    assert not inserted.any()
    for one, spacing, centre in zip(part, SPACING, (20, 18, 9), strict=True):
        assert abs((one.start - 0.5 - centre) * spacing + 6) <= spacing / 2 + 1e-9
        assert abs((one.stop - 0.5 - centre) * spacing - 6) <= spacing / 2 + 1e-9


def test_positions_are_those_of_the_voxels() -> None:
    cube = Cube.around(np.array([20.0, 18, 9]), 12.0, SPACING, 16)
    voxels = np.array([[20.0, 18, 9], [21, 18, 9]])
    positions = cube.positions(voxels)
    assert np.allclose(positions[0], 7.5)
    assert np.allclose(positions[1] - positions[0], [SPACING[0] / (12 / 16), 0, 0])


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_thinner_than_a_voxel_of_the_cube_is_seen(slices: int, axis: int) -> None:
    voxels = np.full((100, 100, slices), 100, np.float32)
    voxels[40:60, 40:60] = 200
    voxels = np.moveaxis(voxels, 2, axis)
    centre = np.insert([49.5, 49.5], axis, (slices - 1) / 2)
    cube = Cube.around(centre, 200.0, (1.0, 1.0, 1.0), 64)  # Voxels of 3.1 mm, with the volume between two of them.
    seen = cube.extract(voxels, outside=0.0)
    assert seen.max() == pytest.approx(200, abs=0.01)
    planes = np.flatnonzero(np.moveaxis(seen, axis, 0).any((1, 2)))
    assert planes.tolist() == [31, 32]
    restored = cube.insert(seen, voxels.shape)  # type: ignore[arg-type]
    assert (np.argwhere(restored > 150).mean(0) == pytest.approx(centre, abs=0.2)) and restored.max() > 199


@pytest.mark.parametrize("dtype", [np.bool_, np.uint16, np.int64, np.float64, ">i2"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("width", [12.0, 60.0])
def test_the_type_and_the_order_in_memory_make_no_difference(
    dtype: str, order: tuple[int, int, int], width: float
) -> None:
    voxels = (np.abs(smooth_volume()) > 70).astype(dtype)
    cube = Cube.around(np.array([20.0, 18, 9]), width, SPACING, 16)
    in_memory = np.ascontiguousarray(voxels.transpose(order)).transpose(np.argsort(order))
    seen = cube.extract(in_memory[::-1][::-1])
    assert seen.dtype == np.float32
    assert np.allclose(seen, cube.extract(voxels.astype(np.float32)), atol=1e-5)
