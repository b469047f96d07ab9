from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from baps.errors import InputError, NotFoundError
from baps.formats import read_labels, read_volume, write_nifti, write_nrrd
from baps.volume import Volume

WRITERS: dict[str, Callable[[Path, Volume], None]] = {
    ".nii": write_nifti,
    ".nii.gz": write_nifti,
    ".nrrd": write_nrrd,
}


@st.composite
def _volumes(draw: st.DrawFn) -> Volume:
    """Small volumes at an oblique, possibly mirrored place."""
    shape = draw(st.tuples(*[st.integers(1, 6)] * 3))
    kind = draw(st.sampled_from([np.uint8, np.int16, np.int32, np.float32]))
    angles = draw(st.tuples(*[st.floats(-180, 180)] * 3))
    spacing = np.array(draw(st.tuples(*[st.floats(0.2, 8)] * 3)))
    signs = np.array(draw(st.tuples(*[st.sampled_from([-1, 1])] * 3)))
    origin = draw(st.tuples(*[st.floats(-900, 900)] * 3))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing * signs
    affine[:3, 3] = origin
    random = np.random.default_rng(draw(st.integers(0, 99)))
    return Volume(random.integers(0, 250, shape).astype(kind), affine)


def _volume() -> Volume:
    affine = np.diag([-0.7, 0.8, 2.5, 1.0])
    affine[:3, 3] = (10, -20, 30)
    return Volume(np.random.default_rng(0).integers(0, 900, (5, 6, 7)).astype(np.int16), affine)


def _nifti(path: Path, voxels: NDArray[np.generic], affine: NDArray[np.float64] | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)
    return path


@pytest.mark.parametrize("suffix", WRITERS)
@given(volume=_volumes())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, suffix: str, volume: Volume) -> None:
    path = tmp_path_factory.mktemp("round") / f"volume{suffix}"
    WRITERS[suffix](path, volume)
    again = read_volume(path)
    assert again.voxels.dtype == volume.voxels.dtype
    np.testing.assert_array_equal(again.voxels, volume.voxels)
    np.testing.assert_allclose(again.affine, volume.affine, rtol=1e-6, atol=1e-4)
    assert again.same_geometry(volume)


@given(volume=_volumes())
def test_spacing_is_the_distance_of_neighbouring_voxels(volume: Volume) -> None:
    here = volume.affine @ (0, 0, 0, 1)
    for axis, step in enumerate(volume.spacing):
        neighbour = np.array([0.0, 0, 0, 1])
        neighbour[axis] = 1
        assert np.linalg.norm(volume.affine @ neighbour - here) == pytest.approx(step)


def test_nifti_and_nrrd_of_the_same_volume_lie_at_the_same_place(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", _volume())
    write_nrrd(tmp_path / "a.nrrd", _volume(), compress=False)
    assert read_volume(tmp_path / "a.nii.gz").same_geometry(read_volume(tmp_path / "a.nrrd"))


def test_nrrd_is_written_in_lps(tmp_path: Path) -> None:
    write_nrrd(tmp_path / "a.nrrd", _volume())
    header = nrrd.read_header(str(tmp_path / "a.nrrd"))
    assert header["space"] == "left-posterior-superior"
    assert header["encoding"] == "gzip"
    np.testing.assert_allclose(header["space origin"], (-10, 20, 30))
    np.testing.assert_allclose(header["space directions"], np.diag([0.7, -0.8, 2.5]))
    write_nrrd(tmp_path / "b.nrrd", _volume(), compress=False)
    assert nrrd.read_header(str(tmp_path / "b.nrrd"))["encoding"] == "raw"


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("right-anterior-superior", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
        ("left-posterior-superior", (-1, -1, 1)),
        ("RAS", (1, 1, 1)),
        ("LAS", (-1, 1, 1)),
        ("LPS", (-1, -1, 1)),
    ],
)
def test_spaces_of_nrrd(tmp_path: Path, space: str, signs: tuple[int, int, int]) -> None:
    volume = _volume()
    affine = np.diag([*signs, 1]) @ volume.affine
    header = {"space": space, "space directions": affine[:3, :3].T, "space origin": affine[:3, 3]}
    nrrd.write(str(tmp_path / "a.nrrd"), volume.voxels, header)
    np.testing.assert_allclose(read_volume(tmp_path / "a.nrrd").affine, volume.affine)


@pytest.mark.parametrize("shape", [(4, 5, 6, 1), (4, 5, 6, 1, 1)])
def test_trailing_dimensions_of_one_are_accepted(tmp_path: Path, shape: tuple[int, ...]) -> None:
    voxels = np.arange(120, dtype=np.int16).reshape(shape)
    assert read_volume(_nifti(tmp_path / "a.nii", voxels)).voxels.shape == (4, 5, 6)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").voxels, voxels.reshape(4, 5, 6))


def test_a_trailing_dimension_of_one_is_accepted_in_nrrd(tmp_path: Path) -> None:
    volume = _volume()
    directions = np.vstack([volume.affine[:3, :3].T, [np.nan] * 3])
    header = {
        "space": "right-anterior-superior",
        "space directions": directions,
        "space origin": volume.affine[:3, 3],
        "kinds": ["domain", "domain", "domain", "list"],
    }
    nrrd.write(str(tmp_path / "a.nrrd"), volume.voxels[..., None], header)
    again = read_volume(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(again.voxels, volume.voxels)
    np.testing.assert_allclose(again.affine, volume.affine)


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


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"absent\.nii"):
        read_volume(tmp_path / "absent.nii")


def test_another_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"x")
    with pytest.raises(InputError, match="NIfTI"):
        read_volume(tmp_path / "picture.png")


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.6])
def test_a_truncated_file(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"cut{suffix}"
    WRITERS[suffix](path, Volume(np.random.default_rng(0).integers(0, 900, (30, 30, 30)).astype(np.int16), np.eye(4)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match=rf"(?s)^cut{suffix}.*(broken|affine)"):
        read_volume(path)


def test_a_truncated_raw_nrrd(tmp_path: Path) -> None:
    path = tmp_path / "cut.nrrd"
    write_nrrd(path, _volume(), compress=False)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match="cut.nrrd"):
        read_volume(path)


def test_text_under_the_name_of_a_volume(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz", "a.nrrd"):
        (tmp_path / name).write_text("This is no image. " * 50)
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            read_volume(tmp_path / name)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 6, 2), (4, 5, 1, 3)])
def test_other_than_three_dimensions(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="dimensions"):
        read_volume(_nifti(tmp_path / "a.nii.gz", np.zeros(shape, np.int16)))


def test_four_dimensions_in_nrrd(tmp_path: Path) -> None:
    header = {
        "space": "right-anterior-superior",
        "space directions": np.vstack([[np.nan] * 3, np.eye(3)]),
        "space origin": np.zeros(3),
        "kinds": ["list", "domain", "domain", "domain"],
    }
    nrrd.write(str(tmp_path / "a.nrrd"), np.zeros((2, 4, 5, 6), np.int16), header)
    with pytest.raises(InputError, match="4 dimensions"):
        read_volume(tmp_path / "a.nrrd")


def test_nifti_without_an_affine(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(image, tmp_path / "a.nii")
    with pytest.raises(InputError, match="no affine"):
        read_volume(tmp_path / "a.nii")


def test_nifti_with_a_qform_alone(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), None)
    image.set_qform(_volume().affine, code=1)
    image.set_sform(None, code=0)
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").affine, _volume().affine, atol=1e-5)


@pytest.mark.parametrize(
    "header", [{}, {"space": "scanner-xyz", "space directions": np.eye(3), "space origin": [0] * 3}]
)
def test_nrrd_without_an_affine(tmp_path: Path, header: dict[str, object]) -> None:
    nrrd.write(str(tmp_path / "a.nrrd"), np.zeros((3, 4, 5), np.int16), header)
    with pytest.raises(InputError, match="no affine"):
        read_volume(tmp_path / "a.nrrd")


def test_an_affine_that_cannot_be_inverted(tmp_path: Path) -> None:
    header = {
        "space": "right-anterior-superior",
        "space directions": np.diag([1.0, 1.0, 0.0]),
        "space origin": np.zeros(3),
    }
    nrrd.write(str(tmp_path / "a.nrrd"), np.zeros((3, 4, 5), np.int16), header)
    with pytest.raises(InputError, match="inverted"):
        read_volume(tmp_path / "a.nrrd")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted(tmp_path: Path, bad: float) -> None:
    voxels = np.zeros((3, 4, 5), np.float32)
    voxels[0, 0, :2] = bad
    with pytest.raises(InputError, match="holds 2 voxels that are NaN or infinite"):
        read_volume(_nifti(tmp_path / "a.nii", voxels))


@pytest.mark.parametrize("kind", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])])
def test_values_that_are_no_grey_values(tmp_path: Path, kind: np.dtype[np.generic]) -> None:
    with pytest.raises(InputError, match="grey values"):
        read_volume(_nifti(tmp_path / "a.nii", np.zeros((3, 4, 5), kind)))


def test_labels_come_as_integers(tmp_path: Path) -> None:
    image = Volume(np.zeros((3, 4, 5), np.int16), np.eye(4))
    for name, kind in (("byte", np.uint8), ("short", np.int16), ("single", np.float32)):
        voxels = np.arange(60).reshape(3, 4, 5).astype(kind)
        path = tmp_path / f"{name}.nii.gz"
        write_nifti(path, Volume(voxels, image.affine))
        labels = read_labels(path, image)
        assert labels.dtype.kind in "iu"
        np.testing.assert_array_equal(labels, voxels)


def test_labels_that_hold_fractions(tmp_path: Path) -> None:
    image = Volume(np.zeros((3, 4, 5), np.int16), np.eye(4))
    _nifti(tmp_path / "a.nii", np.full((3, 4, 5), 0.5, np.float32))
    with pytest.raises(InputError, match="fractions"):
        read_labels(tmp_path / "a.nii", image)


def test_labels_of_another_geometry(tmp_path: Path) -> None:
    image = Volume(np.zeros((3, 4, 5), np.int16), np.eye(4))
    shifted = np.eye(4)
    shifted[0, 3] = 0.5
    for voxels, affine in (((3, 4, 6), np.eye(4)), ((3, 4, 5), shifted), ((3, 4, 5), np.diag([-1.0, 1, 1, 1]))):
        _nifti(tmp_path / "a.nii", np.zeros(voxels, np.uint8), affine)
        with pytest.raises(InputError, match="geometry of the image"):
            read_labels(tmp_path / "a.nii", image)


def test_single_precision_of_the_affine_is_no_other_geometry(tmp_path: Path) -> None:
    affine = np.diag([0.123456789, 0.3333333333, 1.1, 1.0])
    affine[:3, 3] = (-321.123456789, 98.7654321, 1234.56789)
    image = Volume(np.zeros((3, 4, 5), np.int16), affine)
    write_nifti(tmp_path / "a.nii.gz", Volume(np.ones((3, 4, 5), np.uint8), affine))
    assert read_labels(tmp_path / "a.nii.gz", image).sum() == 60


def test_a_nifti_that_fails_half_way_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.nii.gz"
    write_nifti(path, _volume())
    before = path.read_bytes()

    def fail(image: object, name: str) -> None:
        Path(name).write_bytes(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(nibabel, "save", fail)
    with pytest.raises(OSError, match="No space"):
        write_nifti(path, Volume(np.zeros((2, 2, 2), np.uint8), np.eye(4)))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.nii.gz"]  # noqa: PTH208
