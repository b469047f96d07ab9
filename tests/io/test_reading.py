from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from baps.errors import InputError, NotFoundError
from baps.imaging.volume import Volume
from baps.io import IMAGE_SUFFIXES, file_stem, read_labels, read_volume, write_nifti, write_nrrd

WRITERS: dict[str, Callable[[Path, Volume], None]] = {
    ".nii": write_nifti,
    ".nii.gz": write_nifti,
    ".nrrd": write_nrrd,
}


@st.composite
def _volumes(draw: st.DrawFn) -> Volume:
    """Draw small volumes with an oblique, possibly mirrored geometry."""
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


def test_nifti_and_nrrd_of_the_same_volume_have_the_same_geometry(tmp_path: Path, placed_volume: Volume) -> None:
    write_nifti(tmp_path / "a.nii.gz", placed_volume)
    write_nrrd(tmp_path / "a.nrrd", placed_volume, compress=False)
    assert read_volume(tmp_path / "a.nii.gz").same_geometry(read_volume(tmp_path / "a.nrrd"))


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"absent\.nii"):
        read_volume(tmp_path / "absent.nii")


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.6])
def test_truncated_file_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"cut{suffix}"
    WRITERS[suffix](path, Volume(np.random.default_rng(0).integers(0, 900, (30, 30, 30)).astype(np.int16), np.eye(4)))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=rf"(?s)^cut{suffix}.*(broken|affine)"):
        read_volume(path)


def test_text_file_named_like_a_volume_is_refused(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz", "a.nrrd"):
        (tmp_path / name).write_text("This is no image. " * 50)
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            read_volume(tmp_path / name)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted(tmp_path: Path, bad: float, save_nifti: Callable[..., Path]) -> None:
    voxels = np.zeros((3, 4, 5), np.float32)
    voxels[0, 0, :2] = bad
    with pytest.raises(InputError, match="holds 2 voxels that are NaN or infinite"):
        read_volume(save_nifti(tmp_path / "a.nii", voxels))


def test_labels_are_integers(tmp_path: Path) -> None:
    image = Volume(np.zeros((3, 4, 5), np.int16), np.eye(4))
    for name, kind in (("byte", np.uint8), ("short", np.int16), ("single", np.float32)):
        voxels = np.arange(60).reshape(3, 4, 5).astype(kind)
        path = tmp_path / f"{name}.nii.gz"
        write_nifti(path, Volume(voxels, image.affine))
        labels = read_labels(path, image)
        assert labels.dtype.kind in "iu"
        np.testing.assert_array_equal(labels, voxels)


def test_fractional_labels_are_refused(tmp_path: Path, save_nifti: Callable[..., Path]) -> None:
    image = Volume(np.zeros((3, 4, 5), np.int16), np.eye(4))
    save_nifti(tmp_path / "a.nii", np.full((3, 4, 5), 0.5, np.float32))
    with pytest.raises(InputError, match="fractions"):
        read_labels(tmp_path / "a.nii", image)


def test_labels_of_another_geometry_are_refused(tmp_path: Path, save_nifti: Callable[..., Path]) -> None:
    image = Volume(np.zeros((3, 4, 5), np.int16), np.eye(4))
    shifted = np.eye(4)
    shifted[0, 3] = 0.5
    for voxels, affine in (((3, 4, 6), np.eye(4)), ((3, 4, 5), shifted), ((3, 4, 5), np.diag([-1.0, 1, 1, 1]))):
        save_nifti(tmp_path / "a.nii", np.zeros(voxels, np.uint8), affine)
        with pytest.raises(InputError, match="geometry of the image"):
            read_labels(tmp_path / "a.nii", image)


def test_single_precision_of_the_affine_is_tolerated(tmp_path: Path) -> None:
    affine = np.diag([0.123456789, 0.3333333333, 1.1, 1.0])
    affine[:3, 3] = (-321.123456789, 98.7654321, 1234.56789)
    image = Volume(np.zeros((3, 4, 5), np.int16), affine)
    write_nifti(tmp_path / "a.nii.gz", Volume(np.ones((3, 4, 5), np.uint8), affine))
    assert read_labels(tmp_path / "a.nii.gz", image).sum() == 60


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_text_file_named_like_an_image_is_refused(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_text("This is no image. " * 50)
    with pytest.raises(InputError, match=f"^a{suffix} cannot be read"):
        read_volume(tmp_path / f"a{suffix}")


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.nhdr", r"one file \(\.nrrd\)"), ("a.MHD", r"one file \(\.mha\)"), ("a.img", r"the \.hdr beside it"),
     ("a.hdr.gz", "unpack it")],
)  # fmt: skip
def test_files_that_are_part_of_an_image_are_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=f"^{name} .*{message}"):
        read_volume(tmp_path / name)


def test_unsupported_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.pdf").write_bytes(b"x")
    with pytest.raises(InputError, match=r"letter\.pdf has a format that is not supported\. Give NIfTI.*\.npz"):
        read_volume(tmp_path / "letter.pdf")


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.nii.gz", "a"),
        ("a.NII", "a"),
        ("b.seg.nrrd", "b.seg"),
        ("1.2.3.dcm", "1.2.3"),
        ("c.JPEG", "c"),
        ("d.npz", "d"),
        ("CT.1.3.12", "CT.1.3.12"),
        ("report.pdf", "report.pdf"),
    ],
)
def test_stems_of_file_names(tmp_path: Path, name: str, stem: str) -> None:
    assert file_stem(tmp_path / name) == stem


def test_stem_of_a_folder_is_its_name(tmp_path: Path) -> None:
    (tmp_path / "1.2.840.dcm").mkdir()
    assert file_stem(tmp_path / "1.2.840.dcm") == "1.2.840.dcm"


def test_labels_along_other_axes_are_reordered(tmp_path: Path) -> None:
    """The image is rotated by 45 degrees, so that two patient axes are equally near."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (45, 45, 10), degrees=True).as_matrix() * (0.7, 0.8, 2.5)
    affine[:3, 3] = (10, -20, 30)
    labels = np.random.default_rng(0).integers(0, 99, (3, 4, 5)).astype(np.uint8)
    image = Volume(np.zeros((3, 4, 5), np.int16), affine)
    for order, flips in product(permutations(range(3)), product((1, -1), repeat=3)):
        orientation = np.stack([order, flips], axis=1).astype(float)
        stored = nibabel.orientations.apply_orientation(labels, orientation)
        rotated = affine @ nibabel.orientations.inv_ornt_aff(orientation, labels.shape)
        write_nifti(tmp_path / "a.nii", Volume(stored, rotated))
        np.testing.assert_array_equal(read_labels(tmp_path / "a.nii", image), labels, err_msg=f"{order} {flips}")


def test_labels_of_colour_are_refused(tmp_path: Path, save_nifti: Callable[..., Path]) -> None:
    image = Volume(np.zeros((3, 4, 5), np.int16), np.eye(4))
    colours = np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(InputError, match=r"The label a\.nii holds colour where grey values are needed"):
        read_labels(save_nifti(tmp_path / "a.nii", colours), image)


def _one_slice() -> Volume:
    """Make an oblique slice of 5 columns and 4 rows."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (10, 20, 30), degrees=True).as_matrix() * 0.3
    return Volume(np.zeros((5, 4, 1), np.int16), affine)


def test_labels_without_a_geometry_fit_a_single_slice(tmp_path: Path) -> None:
    seg = np.random.default_rng(0).integers(0, 9, (4, 5)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", seg=seg)
    Image.fromarray(seg).save(tmp_path / "a.png")
    for name in ("a.npz", "a.png"):
        np.testing.assert_array_equal(read_labels(tmp_path / name, _one_slice()), seg.T[..., None])


@pytest.mark.parametrize("shape", [(4, 5, 1), (5, 4, 2)])
def test_labels_without_a_geometry_of_another_shape_are_refused(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png has shape \(5, 4, 1\) and does not have the geometry of its image"):
        read_labels(tmp_path / "a.png", Volume(np.zeros(shape, np.int16), np.eye(4)))


def test_fractional_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", seg=np.full((4, 5), 0.5))
    with pytest.raises(InputError, match="fractions"):
        read_labels(tmp_path / "a.npz", _one_slice())


def test_missing_label_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"absent\.png"):
        read_labels(tmp_path / "absent.png", _one_slice())


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.png", "a.npz"])
@pytest.mark.parametrize("different", [256, 257])
def test_label_with_too_many_values_is_refused(tmp_path: Path, name: str, different: int) -> None:
    voxels = np.minimum(np.arange(20 * 15), different - 1).reshape(20, 15, 1).astype(np.uint16) * 7
    image = Volume(np.zeros((20, 15, 1), np.int16), np.eye(4))
    if name == "a.png":
        Image.fromarray(voxels[..., 0].T).save(tmp_path / name)
    elif name == "a.npz":
        np.savez(tmp_path / name, seg=voxels[..., 0].T)
    else:
        WRITERS[name[1:]](tmp_path / name, Volume(voxels, image.affine))
    if different == 256:
        np.testing.assert_array_equal(read_labels(tmp_path / name, image), voxels)
        return
    with pytest.raises(InputError, match=f"^The label {name} holds 257 different values; that is an image"):
        read_labels(tmp_path / name, image)
