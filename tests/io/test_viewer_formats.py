from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK
import tifffile
from PIL import Image

from baps.imaging.volume import Volume
from baps.io import opens_in_viewers, read_volume, write_nifti, write_nrrd

GREY = np.random.default_rng(0).integers(0, 256, (4, 5)).astype(np.uint8)
VOXELS = np.random.default_rng(0).integers(0, 99, (3, 4, 5)).astype(np.int16)


def _metaimage(path: Path, voxels: np.ndarray = VOXELS) -> None:
    image = SimpleITK.GetImageFromArray(voxels.T, isVector=False)
    image.SetSpacing([0.7] * voxels.ndim)
    SimpleITK.WriteImage(image, str(path))


def _nifti2(path: Path) -> None:
    nibabel.save(nibabel.Nifti2Image(VOXELS, np.diag([-2.0, 3, 4, 1])), path)


def _nifti_pair(path: Path) -> None:
    nibabel.save(nibabel.Nifti1Pair(VOXELS, np.diag([-2.0, 3, 4, 1])), path)


def _oblique_slice(path: Path) -> None:
    affine = np.array([[0, 0, 3.0, 5], [-2, 0, 0, 6], [0, -2, 0, 7], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(GREY, affine), path)


def _nrrd(path: Path, encoding: str = "gzip", space: str = "LPS") -> None:
    header = {"space": space, "space directions": np.eye(3) * 2, "space origin": [1, 2, 3], "encoding": encoding}
    nrrd.write(str(path), VOXELS, header)


def _slice_nrrd(path: Path) -> None:
    nrrd.write(str(path), GREY, {"space": "LPS", "space directions": np.eye(3)[:2], "space origin": [1, 2, 3]})


AS_IT_IS: list[tuple[str, Callable[[Path], object]]] = [
    ("a.nii", lambda path: write_nifti(path, Volume(VOXELS, np.diag([-2.0, 3, 4, 1])))),
    ("a.nii.gz", lambda path: write_nifti(path, Volume(VOXELS, np.diag([-2.0, 3, 4, 1])))),
    ("flat.nii", lambda path: nibabel.save(nibabel.Nifti1Image(GREY, np.diag([-2.0, -3, 1, 1])), path)),
    ("a.nrrd", lambda path: write_nrrd(path, Volume(VOXELS, np.diag([-2.0, 3, 4, 1])))),
    ("xyz.nrrd", lambda path: _nrrd(path, space="scanner-xyz")),
    ("a.mha", _metaimage),
    ("flat.mha", lambda path: _metaimage(path, VOXELS[..., 0])),
    ("a.png", lambda path: Image.fromarray(GREY).save(path, dpi=(300, 300))),
    ("a.jpg", lambda path: Image.fromarray(GREY).save(path)),
]
CONVERTED: list[tuple[str, Callable[[Path], object]]] = [
    ("two.nii.gz", _nifti2),
    ("a.hdr", _nifti_pair),
    ("oblique.nii", _oblique_slice),
    ("a.nrrd", lambda path: _nrrd(path, "bzip2")),
    ("slice.nrrd", _slice_nrrd),
    ("once.mha", lambda path: _metaimage(path, VOXELS[..., None])),
    ("dpi.jpg", lambda path: Image.fromarray(GREY).save(path, dpi=(72, 72))),
    ("a.tif", lambda path: tifffile.imwrite(path, GREY)),
    ("signed.tif", lambda path: tifffile.imwrite(path, GREY.astype(np.int8))),
    ("stack.tif", lambda path: tifffile.imwrite(path, VOXELS, imagej=True, resolution=(2, 2),
                                                metadata={"axes": "ZYX", "spacing": 2.5, "unit": "mm"})),
    ("a.npz", lambda path: np.savez(path, img=GREY)),
]  # fmt: skip


def _seen_by_itk(path: Path) -> Volume:
    """Read the geometry like 3D Slicer, which has no images of two dimensions."""
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    image = reader.Execute()
    if image.GetDimension() == 2:
        image = SimpleITK.JoinSeries(image)
    steps = [image.TransformIndexToPhysicalPoint(index) for index in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0))]
    affine = np.eye(4)
    affine[:3] = np.array(steps).T
    affine[:3, :3] -= affine[:3, 3:]
    voxels = SimpleITK.GetArrayFromImage(image).swapaxes(0, 2)
    return Volume(voxels, np.diag([-1.0, -1, 1, 1]) @ affine)


@pytest.mark.parametrize(("name", "write"), AS_IT_IS, ids=[name for name, _ in AS_IT_IS])
def test_files_that_itk_opens_with_the_same_geometry(
    tmp_path: Path, name: str, write: Callable[[Path], object]
) -> None:
    path = tmp_path / name
    write(path)
    assert opens_in_viewers(path)
    ours, itk_geometry = read_volume(path), _seen_by_itk(path)
    np.testing.assert_array_equal(itk_geometry.voxels, ours.voxels)
    assert itk_geometry.same_geometry(ours)


@pytest.mark.parametrize(("name", "write"), CONVERTED, ids=[name for name, _ in CONVERTED])
def test_files_that_must_be_converted(tmp_path: Path, name: str, write: Callable[[Path], object]) -> None:
    path = tmp_path / name
    write(path)
    assert not opens_in_viewers(path)
    ours = read_volume(path)
    write_nifti(tmp_path / "converted.nii.gz", ours)
    assert opens_in_viewers(tmp_path / "converted.nii.gz")
    itk_geometry = _seen_by_itk(tmp_path / "converted.nii.gz")
    np.testing.assert_array_equal(itk_geometry.voxels, ours.voxels)
    assert itk_geometry.same_geometry(ours)


def test_refused_file_does_not_open(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5, 6), np.int16), np.eye(4)), tmp_path / "time.nii")
    (tmp_path / "text.nrrd").write_text("This is no image.")
    (tmp_path / "series").mkdir()
    for name in ("time.nii", "text.nrrd", "series", "absent.nii"):
        assert not opens_in_viewers(tmp_path / name)


def test_a_changed_file_is_checked_again(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    _nifti2(path)
    assert not opens_in_viewers(path)
    write_nifti(path, Volume(VOXELS, np.eye(4)))
    os.utime(path, ns=(1, 1))
    assert opens_in_viewers(path)
