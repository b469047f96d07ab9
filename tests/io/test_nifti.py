from __future__ import annotations

import gzip
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from baps.errors import InputError, StorageError
from baps.imaging.volume import Volume
from baps.io import read_labels, read_volume, write_nifti, write_nrrd
from baps.io.nifti import read_nifti_affine
from benchmarks.real_data import ROOT

CASE = ROOT.parent / "cases" / "nifti_qform_sform"


def test_scaling_is_applied_and_doubles_become_single(tmp_path: Path) -> None:
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
def test_other_dimensions_are_refused(tmp_path: Path, shape: tuple[int, ...], save_nifti: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="dimensions"):
        read_volume(save_nifti(tmp_path / "a.nii.gz", np.zeros(shape, np.int16)))


def test_nifti_without_an_affine_is_refused(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(image, tmp_path / "a.nii")
    with pytest.raises(InputError, match="no affine"):
        read_volume(tmp_path / "a.nii")


def test_nifti_with_only_a_qform_is_read(tmp_path: Path, placed_volume: Volume) -> None:
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), None)
    image.set_qform(placed_volume.affine, code=1)
    image.set_sform(None, code=0)
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").affine, placed_volume.affine, atol=1e-5)


def test_failed_write_leaves_the_old_file(
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


def test_complex_values_are_refused(tmp_path: Path, save_nifti: Callable[..., Path]) -> None:
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
        image.header["pixdim"][1:3] = 0.5, height
        nibabel.save(image, tmp_path / name)
    expected = np.diag([-0.5, -0.6, thickness or 1, 1])
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").affine, expected, atol=1e-6)
    with pytest.raises(InputError, match=r"sform \(code 1\) is sheared, flat or not finite"):
        read_volume(tmp_path / "b.nii")


def _seen_by_itk(path: Path) -> Volume:
    """Read a file with ITK, and the position of each voxel from ITK."""
    image = SimpleITK.ReadImage(str(path))
    origin = np.array(image.TransformContinuousIndexToPhysicalPoint((0.0, 0.0, 0.0)))
    steps = [
        np.array(image.TransformContinuousIndexToPhysicalPoint(tuple(map(float, axis)))) - origin for axis in np.eye(3)
    ]
    affine = np.eye(4)
    affine[:3] = np.stack([*steps, origin], axis=1)
    return Volume(SimpleITK.GetArrayFromImage(image).swapaxes(0, 2), np.diag([-1.0, -1, 1, 1]) @ affine)


def _affine(angles: tuple[float, ...], sizes: tuple[float, ...], shear: float, hand: int) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles).as_matrix() @ [[hand, shear, 0], [0, 1, 0], [0, 0, 1]] * sizes
    affine[:3, 3] = 30.5, -20.25, 10
    return affine


ANGLES = st.tuples(*[st.floats(-3, 3)] * 3)
SIZES = st.tuples(*[st.floats(0.3, 6)] * 3)
HANDS = st.sampled_from([-1, 1])


@given(
    angles=ANGLES,
    turn=st.sampled_from([0.0, 1e-6, 1e-3, 0.2]),
    sizes=SIZES,
    hands=st.tuples(HANDS, HANDS),
    shear=st.sampled_from([0.0, 0.0, 1e-5, 0.01, 0.4]),
    codes=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    units=st.sampled_from([0, 1, 2, 3, 10, 11]),
    pixdim=st.sampled_from([None, None, None, 0.0, -1.0, 0.9]),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
    order=st.sampled_from("<>"),
)
def test_geometry_equals_that_of_itk(
    tmp_path_factory: pytest.TempPathFactory, angles: tuple[float, ...], turn: float, sizes: tuple[float, ...],
    hands: tuple[int, int], shear: float, codes: tuple[int, int], units: int, pixdim: float | None, suffix: str,
    order: str,
) -> None:  # fmt: skip
    voxels = np.random.default_rng(0).integers(-99, 99, (3, 4, 5)).astype(np.int16)
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(np.int16)
    header.set_data_shape(voxels.shape)
    header.set_qform(_affine(angles, sizes, 0, hands[0]), code=0)
    header.set_sform(_affine((angles[0] + turn, *angles[1:]), sizes, shear, hands[1]), code=0)
    header["qform_code"], header["sform_code"], header["xyzt_units"] = *codes, units
    if pixdim is not None:
        header["pixdim"][2] *= pixdim
    path = tmp_path_factory.mktemp("nifti") / f"a{suffix}"
    header["magic"], header["vox_offset"] = b"n+1", 352  # nibabel would have corrected the header.
    content = bytes(header.binaryblock) + bytes(4) + voxels.astype(f"{order}i2").tobytes("F")
    path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    if codes == (0, 0):
        with pytest.raises(InputError, match=r"no affine \(its sform and qform codes are 0\)"):
            read_volume(path)
        return
    try:
        itk_volume = _seen_by_itk(path)
    except RuntimeError:
        with pytest.raises(InputError, match=r"sform \(code \d\) is sheared, flat or not finite.* qform \(code 0\)"):
            read_volume(path)
        return
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_array_equal(itk_volume.voxels, voxels)
    np.testing.assert_allclose(volume.affine, itk_volume.affine, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(volume.affine, read_nifti_affine(path))
    label = SimpleITK.ReadImage(str(path)) > 0
    for name in ("label.nii.gz", "label.nrrd", "label.mha"):  # As 3D Slicer saves it.
        SimpleITK.WriteImage(label, str(path.with_name(name)))
        np.testing.assert_array_equal(read_labels(path.with_name(name), volume), voxels > 0)


@given(angles=ANGLES, sizes=SIZES, hand=HANDS, far=st.floats(-1500, 1500), suffix=st.sampled_from([".nii", ".nii.gz"]))
@example(
    angles=(0.0039, 0.0, 0.5), sizes=(1.0, 1.0, 1.0), hand=-1, far=0.0, suffix=".nii"
)  # Rotated by nearly 180 degrees.
@example(angles=(0.0, 0.0, 0.0), sizes=(1e-3, 2e-3, 3e-3), hand=-1, far=1.0, suffix=".nii")
def test_itk_and_nibabel_read_the_written_geometry(
    tmp_path_factory: pytest.TempPathFactory, angles: tuple[float, ...], sizes: tuple[float, ...], hand: int,
    far: float, suffix: str,
) -> None:  # fmt: skip
    affine = _affine(angles, sizes, 0, hand)
    affine[2, 3] = far
    voxels = np.random.default_rng(0).integers(0, 99, (7, 3, 500)).astype(np.int16)
    volume = Volume(voxels, affine)
    path = tmp_path_factory.mktemp("nifti") / f"a{suffix}"
    write_nifti(path, volume)
    nibabels = nibabel.load(path)
    assert nibabels.get_qform(coded=True)[0] is None or volume.same_geometry(Volume(voxels, nibabels.get_qform()))
    for itk_volume in (_seen_by_itk(path), Volume(np.asarray(nibabels.dataobj), nibabels.get_sform())):
        np.testing.assert_array_equal(itk_volume.voxels, volume.voxels)
        np.testing.assert_allclose(itk_volume.affine, affine, rtol=1e-5, atol=2e-4)
    assert read_volume(path).same_geometry(volume)
    write_nrrd(path.with_name("mask.nrrd"), volume)  # The mask of a click.
    np.testing.assert_allclose(_seen_by_itk(path.with_name("mask.nrrd")).affine, affine, rtol=1e-6, atol=1e-6)


def test_axes_that_are_not_at_right_angles_are_not_written(tmp_path: Path) -> None:
    volume = Volume(np.zeros((3, 4, 5), np.int16), _affine((0, 0, 0), (1, 1, 1), 0.4, 1))
    with pytest.raises(InputError, match=r"axes of a\.nii\.gz are not at right angles"):
        write_nifti(tmp_path / "a.nii.gz", volume)
    assert not list(tmp_path.iterdir())
    rounded = volume.affine.copy()
    rounded[0, 1] = 0.01  # Positions that a scanner rounded.
    write_nifti(tmp_path / "a.nii.gz", Volume(volume.voxels, rounded))
    assert _seen_by_itk(tmp_path / "a.nii.gz").same_geometry(Volume(volume.voxels, rounded))


def test_a_slice_of_two_dimensions_keeps_its_position(tmp_path: Path) -> None:
    affine = _affine((0.3, -1.2, 0.7), (0.5, 0.6, 3), 0, 1)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5), np.int16), affine), tmp_path / "a.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").affine, affine, atol=1e-5)


def test_suffix_that_contradicts_the_compression_is_refused(tmp_path: Path, placed_volume: Volume) -> None:
    write_nifti(tmp_path / "a.nii", placed_volume)
    write_nifti(tmp_path / "b.nii.gz", placed_volume)
    (tmp_path / "a.nii").rename(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii.gz").rename(tmp_path / "b.nii")
    with pytest.raises(InputError, match=r"a\.nii\.gz is not compressed, .* rename it to end in \.nii\.$"):
        read_volume(tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=r"b\.nii is compressed, .* rename it to end in \.nii\.gz\.$"):
        read_volume(tmp_path / "b.nii")


@pytest.mark.skipif(not CASE.is_dir(), reason=f"no case at {CASE}")
def test_choice_between_two_geometries() -> None:
    path = CASE / "a.nii.gz"
    itk_volume, volume = _seen_by_itk(path), read_volume(path)
    np.testing.assert_allclose(volume.affine, itk_volume.affine, atol=1e-6)
    np.testing.assert_array_equal(volume.voxels, itk_volume.voxels)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.Nifti2Pair])
def test_pair_of_files_is_read(tmp_path: Path, kind: type[nibabel.Nifti1Pair], placed_volume: Volume) -> None:
    nibabel.save(kind(placed_volume.voxels, placed_volume.affine), tmp_path / "a.hdr")
    volume = read_volume(tmp_path / "a.hdr")
    np.testing.assert_array_equal(volume.voxels, placed_volume.voxels)
    np.testing.assert_allclose(volume.affine, placed_volume.affine, atol=1e-6)
    if kind is nibabel.Nifti1Pair:
        assert _seen_by_itk(tmp_path / "a.hdr").same_geometry(volume)
    (tmp_path / "a.img").unlink()
    with pytest.raises(InputError, match=r"^a\.hdr comes without a\.img, which holds its voxels"):
        read_volume(tmp_path / "a.hdr")


def test_analyze_is_refused_because_left_and_right_are_unknown(tmp_path: Path) -> None:
    nibabel.save(nibabel.Spm2AnalyzeImage(np.zeros((3, 4, 5), np.int16), np.eye(4)), tmp_path / "a.hdr")
    with pytest.raises(InputError, match=r"^a\.hdr is an Analyze 7\.5 file, .* convert it to NIfTI"):
        read_volume(tmp_path / "a.hdr")


def test_nifti_2_is_read(tmp_path: Path, placed_volume: Volume) -> None:
    nibabel.save(nibabel.Nifti2Image(placed_volume.voxels, placed_volume.affine), tmp_path / "a.nii.gz")
    assert read_volume(tmp_path / "a.nii.gz").same_geometry(placed_volume)


def test_non_finite_geometry_is_refused(tmp_path: Path, placed_volume: Volume) -> None:
    image = nibabel.Nifti1Image(placed_volume.voxels, placed_volume.affine)
    content = bytearray(image.to_bytes())
    content[292:296] = np.float32(np.nan).tobytes()  # The last number of srow_x.
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(InputError, match=r"^a\.nii has no geometry that viewers can show: .*not finite"):
        read_volume(tmp_path / "a.nii")


def test_a_note_says_that_other_programs_place_a_file_elsewhere(tmp_path: Path, placed_volume: Volume) -> None:
    image = nibabel.Nifti1Image(placed_volume.voxels, placed_volume.affine)
    image.set_qform(placed_volume.affine, code=1)
    nibabel.save(image, tmp_path / "same.nii")
    assert read_volume(tmp_path / "same.nii").notes == ()
    moved = placed_volume.affine.copy()
    moved[0, 3] += 9
    image.set_qform(moved, code=1)
    nibabel.save(image, tmp_path / "moved.nii")
    (note,) = read_volume(tmp_path / "moved.nii").notes
    assert note.startswith("moved.nii has the geometry that ITK and 3D Slicer read (qform code 1, sform code 2);")
    image.set_qform(placed_volume.affine, code=1)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "small.nii")
    assert len(read_volume(tmp_path / "small.nii").notes) == 1


def test_a_missing_temporary_folder_is_not_reported_as_a_broken_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placed_volume: Volume
) -> None:
    write_nifti(tmp_path / "a.nii", placed_volume)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(StorageError, match=r"^A temporary file cannot be written \(No such file or directory\)"):
        read_volume(tmp_path / "a.nii")
