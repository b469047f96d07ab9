from __future__ import annotations

import gzip
from pathlib import Path

import nrrd
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from baps.imaging.canvas import Plane
from baps.imaging.volume import Volume
from baps.io import read_volume
from baps.io.itk_geometry import ras_affine
from baps.io.slice_nrrd import write_slice_nrrd


@st.composite
def _masks(draw: st.DrawFn) -> tuple[Volume, Plane, np.ndarray]:
    shape = draw(st.tuples(*[st.integers(1, 12)] * 3))
    axis = draw(st.integers(0, 2))
    plane = Plane(axis, draw(st.integers(0, shape[axis] - 1)))
    affine = np.diag([-0.7, 1.3, -2.5, 1.0])
    affine[:3, :3] = Rotation.from_euler("xyz", draw(st.tuples(*[st.floats(-3, 3)] * 3))).as_matrix() @ affine[:3, :3]
    affine[:3, 3] = -30.5, 20.25, 1000
    volume = Volume(np.zeros(shape, np.int16), affine)
    random = np.random.default_rng(draw(st.integers(0, 99)))
    mask = random.random(plane.extract(volume.voxels).shape) < draw(st.sampled_from([0.0, 0.1, 0.7]))
    return volume, plane, mask


@pytest.mark.parametrize("compress", [True, False])
@given(case=_masks())
def test_slice_mask_is_read_as_a_whole_volume(
    tmp_path_factory: pytest.TempPathFactory, compress: bool, case: tuple[Volume, Plane, np.ndarray]
) -> None:
    volume, plane, mask = case
    path = tmp_path_factory.mktemp("reply") / "mask.nrrd"
    write_slice_nrrd(path, volume, plane, mask, compress)
    expected = np.zeros(volume.shape, np.uint8)
    plane.insert(expected, mask)
    again = read_volume(path)
    assert again.voxels.dtype == np.uint8
    np.testing.assert_array_equal(again.voxels, expected)
    assert again.same_geometry(volume)
    itk_image = sitk.ReadImage(str(path))  # 3D Slicer's reader verifies the checksum.
    np.testing.assert_array_equal(sitk.GetArrayFromImage(itk_image).T, expected)
    np.testing.assert_allclose(ras_affine(itk_image), volume.affine, atol=1e-6)
    assert nrrd.read_header(str(path))["encoding"] == ("gzip" if compress else "raw")


@given(case=_masks())
def test_gzip_file_contains_the_raw_file(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[Volume, Plane, np.ndarray]
) -> None:
    folder = tmp_path_factory.mktemp("reply")
    write_slice_nrrd(folder / "raw.nrrd", *case, compress=False)
    write_slice_nrrd(folder / "packed.nrrd.gz", *case, gzip_file=True)
    assert gzip.decompress((folder / "packed.nrrd.gz").read_bytes()) == (folder / "raw.nrrd").read_bytes()


def test_an_older_longer_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "mask.nrrd"
    path.write_bytes(b"x" * 100_000)
    volume = Volume(np.zeros((3, 4, 5), np.int16), np.eye(4))
    write_slice_nrrd(path, volume, Plane(2, 4), np.ones((4, 3), bool), compress=False)
    assert read_volume(path).voxels.sum() == 12
    assert path.stat().st_size < 1000
