from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from baps.errors import InputError
from baps.formats import read_volume, write_nifti
from baps.volume import Volume


def test_scaled_values_are_read_scaled_and_doubles_made_single(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4))
    image.header.set_slope_inter(2.0, -10.0)
    nibabel.save(image, tmp_path / "a.nii")
    stored = nibabel.load(tmp_path / "a.nii")
    read = read_volume(tmp_path / "a.nii").voxels
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, stored.get_fdata())


def test_big_endian_values_are_read(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header(endianness=">")
    voxels = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4), header), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").voxels, np.arange(24).reshape(2, 3, 4))


@pytest.mark.parametrize("shape", [(4, 5, 6, 1), (4, 5, 6, 1, 1)])
def test_trailing_dimensions_of_one_are_accepted(
    tmp_path: Path, shape: tuple[int, ...], save_nifti: Callable[..., Path]
) -> None:
    voxels = np.arange(120, dtype=np.int16).reshape(shape)
    assert read_volume(save_nifti(tmp_path / "a.nii", voxels)).voxels.shape == (4, 5, 6)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").voxels, voxels.reshape(4, 5, 6))


@pytest.mark.parametrize("shape", [(4,), (4, 5, 6, 2), (4, 5, 1, 3)])
def test_other_than_three_dimensions(tmp_path: Path, shape: tuple[int, ...], save_nifti: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="dimensions"):
        read_volume(save_nifti(tmp_path / "a.nii.gz", np.zeros(shape, np.int16)))


def test_nifti_without_an_affine(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(image, tmp_path / "a.nii")
    with pytest.raises(InputError, match="no affine"):
        read_volume(tmp_path / "a.nii")


def test_nifti_with_a_qform_alone(tmp_path: Path, placed_volume: Volume) -> None:
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), None)
    image.set_qform(placed_volume.affine, code=1)
    image.set_sform(None, code=0)
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").affine, placed_volume.affine, atol=1e-5)


def test_a_nifti_that_fails_half_way_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placed_volume: Volume
) -> None:
    path = tmp_path / "a.nii.gz"
    write_nifti(path, placed_volume)
    before = path.read_bytes()

    def fail(image: object, name: str) -> None:
        Path(name).write_bytes(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(nibabel, "save", fail)
    with pytest.raises(OSError, match="No space"):
        write_nifti(path, Volume(np.zeros((2, 2, 2), np.uint8), np.eye(4)))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.nii.gz"]  # noqa: PTH208


def test_complex_values_are_no_grey_values(tmp_path: Path, save_nifti: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="grey values"):
        read_volume(save_nifti(tmp_path / "a.nii", np.zeros((3, 4, 5), np.complex64)))


@pytest.mark.parametrize("names", ["RGB", "RGBA"])
def test_colour_as_rgb24(tmp_path: Path, names: str, save_nifti: Callable[..., Path], placed_volume: Volume) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (3, 4, 5, len(names))).astype(np.uint8)
    voxels = colours.view([(name, "u1") for name in names])[..., 0]
    volume = read_volume(save_nifti(tmp_path / "a.nii.gz", voxels, placed_volume.affine))
    assert volume.colour
    np.testing.assert_array_equal(volume.voxels, colours[..., :3])
    np.testing.assert_allclose(volume.affine, placed_volume.affine, atol=1e-6)


@pytest.mark.parametrize("between", [(), (1,)])
@pytest.mark.parametrize("intent", ["vector", "rgb vector"])
def test_colour_as_vectors(tmp_path: Path, between: tuple[int, ...], intent: str) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3)).astype(np.uint8)
    image = nibabel.Nifti1Image(colours.reshape(3, 4, 5, *between, 3), np.eye(4))
    image.header.set_intent(intent, allow_unknown=True)
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").voxels, colours)


def test_colour_as_itk_writes_it(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 3)).astype(np.uint8)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(colours, isVector=True), str(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").voxels, colours.swapaxes(0, 2))


def test_three_bytes_without_the_intent_of_a_vector_are_three_volumes(
    tmp_path: Path, save_nifti: Callable[..., Path]
) -> None:
    with pytest.raises(InputError, match="4 dimensions"):
        read_volume(save_nifti(tmp_path / "a.nii", np.zeros((4, 5, 6, 3), np.uint8)))


def test_colour_is_written_as_rgb24(tmp_path: Path, placed_volume: Volume) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3)).astype(np.uint8).swapaxes(1, 2)
    write_nifti(tmp_path / "a.nii.gz", Volume(colours, placed_volume.affine))
    again = read_volume(tmp_path / "a.nii.gz")
    assert again.colour
    np.testing.assert_array_equal(again.voxels, colours)
    assert again.same_geometry(Volume(colours, placed_volume.affine))
    itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "a.nii.gz")))
    np.testing.assert_array_equal(itk.swapaxes(0, 2), colours)


def test_two_dimensions_are_one_slice(tmp_path: Path, save_nifti: Callable[..., Path]) -> None:
    pixels = np.arange(20, dtype=np.int16).reshape(4, 5)
    volume = read_volume(save_nifti(tmp_path / "a.nii", pixels, np.diag([-0.5, -0.6, 3, 1])))
    np.testing.assert_array_equal(volume.voxels, pixels[..., None])
    np.testing.assert_allclose(volume.spacing, (0.5, 0.6, 3))
    colours = np.zeros((4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert read_volume(save_nifti(tmp_path / "b.nii", colours)).voxels.shape == (4, 5, 1, 3)


@pytest.mark.parametrize("thickness", [0, 3])
def test_two_dimensions_without_a_thickness_are_1_mm_thick(tmp_path: Path, thickness: int) -> None:
    for name, height in (("a.nii", 0.6), ("b.nii", 0)):
        image = nibabel.Nifti1Image(np.zeros((4, 5), np.int16), None)
        image.set_sform(np.diag([-0.5, -height, thickness, 1]), code=1, update_affine=False)
        nibabel.save(image, tmp_path / name)
    expected = np.diag([-0.5, -0.6, thickness or 1, 1])
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").affine, expected, atol=1e-6)
    with pytest.raises(InputError, match="inverted"):
        read_volume(tmp_path / "b.nii")
