from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from baps.errors import InputError
from baps.evaluation.cases import CaseReader, load_cases
from baps.evaluation.folders import find_cases, find_organ_cases
from baps.imaging.label_map import LabelMap
from baps.imaging.volume import Volume
from baps.io import read_volume, write_label_map, write_nifti, write_nrrd
from baps.io.dicom.labels import read_series_headers
from baps.io.dicom.rtstruct import write_structures
from tests.support.small_series import random_segments, write_small_series

Phantom = tuple[Volume, NDArray[np.bool_]]
SHAPE = (20, 18, 6)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Create empty folders for images and labels."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    return images, labels


@pytest.fixture
def add_nifti(folders: tuple[Path, Path], new_phantom: Callable[..., Phantom]) -> Callable[..., None]:
    """Return a function that writes an image and its label, the first value on the left, the last on the right."""

    def add(name: str, *values: int, suffix: str = ".nii.gz") -> None:
        volume, ball = new_phantom(shape=SHAPE)
        voxels = np.where(ball, values[-1] if values else 0, 0).astype(np.uint8)
        voxels[: SHAPE[0] // 2][ball[: SHAPE[0] // 2]] = values[0] if values else 0
        for folder, source in zip(folders, (volume, Volume(voxels, volume.affine)), strict=True):
            (write_nrrd if suffix == ".nrrd" else write_nifti)(folder / f"{name}{suffix}", source)

    return add


def _write_dicom(path: Path, volume: Volume, index: int, patient: str | None, series: str) -> None:
    """Write one slice of a volume whose axes are those of the patient."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = pydicom.Dataset()
    data.file_meta, data.is_little_endian, data.is_implicit_VR = meta, True, False
    data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = CTImageStorage, generate_uid(), series
    data.Modality, data.InstanceNumber = "CT", index + 1
    if patient is not None:
        data.PatientID = patient
    data.Columns, data.Rows = volume.shape[:2]
    data.PixelSpacing = [volume.spacing[1], volume.spacing[0]]
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    x, y, z = (volume.affine @ (0, 0, index, 1))[:3]
    data.ImagePositionPatient = [-x, -y, z]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 1
    data.RescaleSlope, data.RescaleIntercept = 1, 0
    data.PixelData = np.ascontiguousarray(volume.voxels[:, :, index].T.astype(np.int16)).tobytes()
    data.preamble = b"\0" * 128
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, write_like_original=False)


@pytest.fixture
def add_dicom(folders: tuple[Path, Path], new_phantom: Callable[..., Phantom]) -> Callable[..., None]:
    """Return a function that writes a DICOM series and its label 1 as NIfTI."""

    def add(name: str, patient: str | None, folder: str | None = None) -> None:
        images, labels = folders
        volume, ball = new_phantom(shape=SHAPE)
        series = generate_uid()
        for index in range(SHAPE[2]):
            _write_dicom(images / (name if folder is None else folder) / f"{index}.dcm", volume, index, patient, series)
        write_nifti(labels / f"{name}.nii.gz", Volume(ball.astype(np.uint8), volume.affine))

    return add


def _picture(path: Path, pixels: NDArray[np.uint8]) -> None:
    Image.fromarray(pixels).save(path)


def _disc(value: int = 255) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[:32, :40]
    return np.where((rows - 16) ** 2 + (columns - 20) ** 2 < 64, value, 0).astype(np.uint8)


def _names(images: Path, labels: Path, *rest: Any) -> list[tuple[str, str, int, str]]:
    cases = find_cases(images, labels, *rest).cases
    return [(case.image.name, case.labels.name, case.value, case.patient) for case in cases]


def test_images_and_labels_are_matched_by_name(folders: tuple[Path, Path], add_nifti: Callable[..., None]) -> None:
    add_nifti("b", 1)
    add_nifti("a.x", 1, suffix=".nrrd")
    add_nifti("c", 1, suffix=".nii")
    result = find_cases(*folders)
    assert [case.image for case in result.cases] == [folders[0] / name for name in ("a.x.nrrd", "b.nii.gz", "c.nii")]
    assert [case.labels for case in result.cases] == [folders[1] / name for name in ("a.x.nrrd", "b.nii.gz", "c.nii")]
    assert [case.patient for case in result.cases] == ["a.x", "b", "c"]
    assert {case.annotated_slices for case in result.cases} == {None}
    assert result.skipped == {}


def test_image_and_label_may_have_different_formats(folders: tuple[Path, Path], add_nifti: Callable[..., None]) -> None:
    images, labels = folders
    add_nifti("a", 1)
    volume = read_volume(labels / "a.nii.gz")
    (labels / "a.nii.gz").unlink()
    write_nrrd(labels / "a.nrrd", volume)
    assert _names(images, labels) == [("a.nii.gz", "a.nrrd", 1, "a")]


def test_all_labels_or_the_selected_one(folders: tuple[Path, Path], add_nifti: Callable[..., None]) -> None:
    add_nifti("a", 5, 2)
    add_nifti("b", 5)
    every = [("a.nii.gz", "a.nii.gz", 2, "a"), ("a.nii.gz", "a.nii.gz", 5, "a"), ("b.nii.gz", "b.nii.gz", 5, "b")]
    assert _names(*folders) == every
    assert _names(*folders, 5) == every[1:]
    two = find_cases(*folders, 2)
    assert [case.value for case in two.cases] == [2]
    assert two.skipped == {"b": "Its label has no voxel of value 2."}
    with pytest.raises(InputError, match=r"No label in .*labels can be used\. Its label has no voxel of value 7"):
        find_cases(*folders, 7)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".JPG", ".tif"])
@pytest.mark.parametrize("colour", [False, True], ids=["grey", "colour"])
def test_black_and_white_masks_of_pictures(folders: tuple[Path, Path], suffix: str, colour: bool) -> None:
    images, labels = folders
    grey = np.random.default_rng(0).integers(0, 100, (32, 40)).astype(np.uint8) + _disc(120)
    _picture(images / f"a{suffix}", np.stack([grey, grey // 2, grey // 3], -1) if colour else grey)
    _picture(labels / "a.png", _disc())
    for value in (None, 1, 255):
        assert _names(images, labels, value) == [(f"a{suffix}", "a.png", 255, "a")]
    (case,) = find_cases(images, labels).cases
    _, organ, _ = CaseReader().read(case)
    np.testing.assert_array_equal(organ[:, :, 0].T, _disc() > 0)


def test_label_1_is_value_1_if_it_exists(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    both = _disc()
    both[0, 0] = 1
    for name, mask in (("both", both), ("small", _disc(1))):
        _picture(images / f"{name}.png", _disc(90))
        _picture(labels / f"{name}.png", mask)
    assert [(name, value) for name, _, value, _ in _names(images, labels, 1)] == [("both.png", 1), ("small.png", 1)]
    with pytest.raises(InputError, match="no voxel of value 2"):
        find_cases(images, labels, 2)


def test_npz_files_contain_image_and_label(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    images, _ = folders
    np.savez(images / "a.npz", img=_disc(90), seg=_disc(1))
    np.savez(images / "b.npz", img=_disc(90), seg=_disc(3))
    np.savez(images / "c.npz", img=_disc(90))
    result = find_cases(images, images)
    assert [(case.image, case.labels, case.value) for case in result.cases] == [
        (images / "a.npz", images / "a.npz", 1),
        (images / "b.npz", images / "b.npz", 3),
    ]
    assert "has no array seg" in result.skipped["c"]


def test_images_are_not_their_own_labels(folders: tuple[Path, Path], add_nifti: Callable[..., None]) -> None:
    add_nifti("a", 1)
    with pytest.raises(InputError, match="and its label are the same file"):
        find_cases(folders[0], folders[0])


def test_a_folder_with_a_dicom_series_is_an_image(folders: tuple[Path, Path], add_dicom: Callable[..., None]) -> None:
    add_dicom("study.1", "p7")
    assert _names(*folders) == [("study.1", "study.1.nii.gz", 1, "p7")]
    slices, skipped = load_cases(find_cases(*folders).cases, 32, 4)
    assert list(slices) == ["p7"]
    assert skipped == {}
    for piece in slices["p7"]:  # The label is on the ball.
        assert piece.image[..., 0][piece.target].mean() > piece.image[..., 0][~piece.target].mean() + 100


def test_images_folder_may_be_a_dicom_series(folders: tuple[Path, Path], add_dicom: Callable[..., None]) -> None:
    images, labels = folders
    add_dicom("images", "p7", folder="")
    assert _names(images, labels) == [("images", "images.nii.gz", 1, "p7")]


def test_single_dicom_files_are_images(folders: tuple[Path, Path], new_phantom: Callable[..., Phantom]) -> None:
    images, labels = folders
    volume, ball = new_phantom(shape=SHAPE)
    for name, patient in (("a", "p1"), ("b", "p2")):
        _write_dicom(images / f"{name}.dcm", volume, 3, patient, generate_uid())
        _picture(labels / f"{name}.png", ball[:, :, 3].T.astype(np.uint8))
    assert _names(images, labels) == [("a.dcm", "a.png", 1, "p1"), ("b.dcm", "b.png", 1, "p2")]


def test_patient_comes_from_dicom_then_table_then_name(
    folders: tuple[Path, Path],
    add_nifti: Callable[..., None],
    add_dicom: Callable[..., None],
    tmp_path: Path,
) -> None:
    add_dicom("d1", "from dicom")
    add_dicom("d2", "")
    add_dicom("d3", None)
    for name in "abcd":
        add_nifti(name, 1)
    table = tmp_path / "patients.csv"
    table.write_text("image,patient\nd1,from table\nd2,p2\n a.nii.gz , p1\n\nb,p1\n,\nc.png,Müller\n", encoding="utf-8")
    patients = {name.split(".")[0]: patient for name, _, _, patient in _names(*folders, None, table)}
    assert patients == {"d1": "from dicom", "d2": "p2", "d3": "d3", "a": "p1", "b": "p1", "c": "Müller", "d": "d"}


def test_table_of_excel_is_read(folders: tuple[Path, Path], add_nifti: Callable[..., None], tmp_path: Path) -> None:
    add_nifti("a", 1)
    table = tmp_path / "patients.csv"
    table.write_bytes(b'\xef\xbb\xbfa.nii.gz,"Last, First"\r\n')
    assert [patient for *_, patient in _names(*folders, None, table)] == ["Last, First"]


@pytest.mark.parametrize("line", ["a.nii.gz", "a;p1", "a,p1,more", "a,", ",p1"])
def test_invalid_line_of_the_table_is_named(
    folders: tuple[Path, Path], add_nifti: Callable[..., None], tmp_path: Path, line: str
) -> None:
    add_nifti("a", 1)
    table = tmp_path / "patients.csv"
    table.write_text(f"image,patient\nb,p1\n\n{line}\nc,p2\n")
    with pytest.raises(InputError, match=r"^Line 4 of patients\.csv must have two cells"):
        find_cases(*folders, patients=table)


@pytest.mark.parametrize("content", [None, b"a,\xff\xfe\n"], ids=["missing", "no text"])
def test_unreadable_table_is_an_error(
    folders: tuple[Path, Path], add_nifti: Callable[..., None], tmp_path: Path, content: bytes | None
) -> None:
    add_nifti("a", 1)
    if content is not None:
        (tmp_path / "patients.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"The table of patients .*patients\.csv cannot be read"):
        find_cases(*folders, patients=tmp_path / "patients.csv")


def test_error_names_the_missing_folder(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for missing in (tmp_path / "none", tmp_path / "file"):
        for pair in ((missing, folders[1]), (folders[0], missing)):
            with pytest.raises(InputError, match=f"There is no folder {missing}"):
                find_cases(*pair)


def test_no_matching_names_is_an_error(folders: tuple[Path, Path], add_nifti: Callable[..., None]) -> None:
    images, labels = folders
    with pytest.raises(InputError, match=r"\(0 found\).*\(0 found\)"):
        find_cases(images, labels)
    add_nifti("a", 1)
    add_nifti("b", 1)
    (labels / "a.nii.gz").rename(labels / "a_label.nii.gz")
    (labels / "b.nii.gz").unlink()
    with pytest.raises(
        InputError, match=r"images \(2 found\).*labels \(1 found\).*as in images/a\.nii\.gz and labels/a"
    ):
        find_cases(images, labels)


@pytest.mark.parametrize("folder_name", [0, 1], ids=["images", "labels"])
def test_duplicate_names_are_refused(
    folders: tuple[Path, Path], add_nifti: Callable[..., None], folder_name: int
) -> None:
    add_nifti("a", 1)
    _picture(folders[folder_name] / "a.png", _disc())
    with pytest.raises(InputError, match=r"a\.nii\.gz and a\.png in .* have the same name\. Keep one of them"):
        find_cases(*folders)


def test_skipped_files_have_a_reason(
    folders: tuple[Path, Path], add_nifti: Callable[..., None], add_dicom: Callable[..., None]
) -> None:
    images, labels = folders
    for name in ("good", "lonely", "orphan", "broken", "spoiled", "elsewhere"):
        add_nifti(name, 1)
    add_nifti("empty")
    add_dicom("torn", "p1")
    (labels / "lonely.nii.gz").unlink()
    (images / "orphan.nii.gz").unlink()
    (images / "broken.nii.gz").write_bytes(b"rubbish")
    (labels / "spoiled.nii.gz").write_bytes(b"rubbish")
    moved = read_volume(labels / "elsewhere.nii.gz")
    write_nifti(labels / "elsewhere.nii.gz", Volume(moved.voxels[1:], moved.affine))
    cut = images / "torn" / "3.dcm"
    cut.write_bytes(cut.read_bytes()[:400])
    result = find_cases(images, labels)
    assert [case.image.name for case in result.cases] == ["good.nii.gz"]
    reasons = {
        "lonely": "There is no label of this name",
        "orphan": "There is no image of this name",
        "broken": "broken.nii.gz cannot be read",
        "spoiled": "spoiled.nii.gz cannot be read",
        "elsewhere": "does not have the geometry of its image",
        "empty": "Its label is empty",
        "torn": "does not say how many Rows",
    }
    assert result.skipped.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in result.skipped[name]


def test_other_files_are_ignored(folders: tuple[Path, Path], add_nifti: Callable[..., None]) -> None:
    images, labels = folders
    add_nifti("a", 1)
    for folder in folders:
        (folder / "notes.txt").write_text("hello")
        (folder / ".b.nii.gz").write_bytes(b"")
        (folder / "empty").mkdir()
        (folder / "readme").mkdir()
        (folder / "readme" / "file.txt").write_text("hello")
    result = find_cases(images, labels)
    assert [case.image.name for case in result.cases] == ["a.nii.gz"]
    assert result.skipped == {}


def test_white_of_any_bit_depth_is_label_1(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    masks = {"bit": _disc() > 0, "byte": _disc(), "one": _disc(1), "short": (_disc(1) * 65535.0).astype(np.uint16)}
    for name, mask in masks.items():
        _picture(images / f"{name}.png", _disc(90))
        _picture(labels / f"{name}.png", mask)
    np.savez(images / "npz.npz", img=_disc(90))
    np.savez(labels / "npz.npz", seg=_disc())
    for value in (None, 1, 255, 65535):
        result = find_cases(images, labels, value)
        assert {case.image.stem: case.value for case in result.cases} == {
            "bit": 1,
            "byte": 255,
            "npz": 255,
            "one": 1,
            "short": 65535,
        }
        assert result.skipped == {}
        for case in result.cases:
            np.testing.assert_array_equal(CaseReader().read(case)[1][:, :, 0].T, _disc() > 0)
    slices, skipped = load_cases(result.cases, 32, 4)
    assert slices.keys() == {*masks, "npz"}
    assert skipped == {}


def test_mask_with_soft_edges_is_one_label(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    soft = np.array(Image.fromarray(_disc()).resize((400, 320), Image.Resampling.BILINEAR))
    assert len(np.unique(soft)) > 16
    _picture(images / "a.png", soft // 2)
    _picture(labels / "a.png", soft)
    for value in (None, 1, 255):
        assert _names(images, labels, value) == [("a.png", "a.png", 255, "a")]


def test_images_folder_may_be_the_current_folder(
    folders: tuple[Path, Path], add_dicom: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_dicom("images", "p7", folder="")
    monkeypatch.chdir(folders[0])
    assert _names(Path(), Path("../labels")) == [("images", "images.nii.gz", 1, "p7")]


def test_series_nested_too_deep_are_reported(folders: tuple[Path, Path], add_dicom: Callable[..., None]) -> None:
    images, labels = folders
    add_dicom("P1", "p1", folder="P1/series")
    sentence = r"No image lies directly in .*images, but there is DICOM in P1/series\. Each series needs a folder"
    with pytest.raises(InputError, match=sentence):
        find_cases(images, labels)


@pytest.fixture
def named_folders(tmp_path: Path) -> tuple[Path, Path]:
    """Write a series with an RTSTRUCT, and a volume with a two-layer segmentation of 3D Slicer and a label map."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    write_small_series(images / "p1")
    image, masks = read_volume(images / "p1"), {"liver": random_segments(3)[0], "spleen": random_segments(8)[0]}
    when = datetime(2026, 3, 1, tzinfo=timezone.utc)
    dataset = write_structures(read_series_headers(images / "p1"), image, {"spleen": masks["spleen"]}, when)
    dataset.save_as(labels / "p1.dcm", write_like_original=False)
    for name in ("a", "b"):
        write_nifti(images / f"{name}.nii.gz", image)
    layers = LabelMap((masks["liver"] * np.uint8(1), masks["spleen"] * np.uint8(2)), {1: "liver", 2: "spleen"})
    write_label_map(labels / "a", layers, image)
    write_nifti(labels / "b.nii.gz", Volume(masks["spleen"] * np.uint8(2), image.affine))
    return images, labels


def test_label_can_be_selected_by_name(named_folders: tuple[Path, Path]) -> None:
    result = find_cases(*named_folders, "spleen")
    assert [(case.image.name, case.labels.name, case.value) for case in result.cases] == [
        ("a.nii.gz", "a.seg.nrrd", 2),
        ("p1", "p1.dcm", 1),
    ]
    assert result.skipped.keys() == {"b"}
    assert "does not name its segments, so 'spleen' is unknown" in result.skipped["b"]
    for case in result.cases:
        np.testing.assert_array_equal(CaseReader().read(case)[1], random_segments(8)[0])
    with pytest.raises(InputError, match="Its label has no segment 'heart', but liver, spleen"):
        find_cases(*named_folders, "heart")


def test_every_segment_of_every_layer_is_a_case(named_folders: tuple[Path, Path]) -> None:
    cases = find_cases(*named_folders).cases
    assert [(case.labels.name, case.value) for case in cases] == [
        ("a.seg.nrrd", 1),
        ("a.seg.nrrd", 2),
        ("b.nii.gz", 2),
        ("p1.dcm", 1),
    ]
    assert [case.value for case in find_cases(*named_folders, 2).cases] == [2, 2]


def test_label_of_another_series_is_skipped(named_folders: tuple[Path, Path]) -> None:
    images, _ = named_folders
    shutil.rmtree(images / "p1")
    write_small_series(images / "p1")
    assert "belongs to another series" in find_cases(*named_folders).skipped["p1"]


def test_notes_tell_how_channels_were_read(named_folders: tuple[Path, Path]) -> None:
    images, labels = named_folders
    image, mask = read_volume(images / "b.nii.gz"), random_segments(3)[0]
    channels = np.stack([~mask, mask], -1).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(channels, image.affine), labels / "b.nii.gz")
    (note,) = find_cases(*named_folders, 1).notes
    assert note == "The first channel of b.nii.gz was taken as the background, the second as label 1."


def test_two_labels_of_one_image_are_refused(named_folders: tuple[Path, Path]) -> None:
    _, labels = named_folders
    shutil.copy(labels / "b.nii.gz", labels / "a.nii.gz")
    with pytest.raises(InputError, match=r"a\.(seg\.nrrd|nii\.gz) and a\.(seg\.nrrd|nii\.gz) are labels of the same"):
        find_cases(*named_folders)


def test_several_organs_are_found_image_by_image(
    folders: tuple[Path, Path], add_nifti: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_nifti("a", 3, 6)
    add_nifti("b", 6)
    read: list[Path] = []
    monkeypatch.setattr("baps.evaluation.folders.read_volume", lambda path: read.append(path) or read_volume(path))
    found = find_organ_cases(*folders, {"liver": 6, "kidney": 3})
    assert [(case.image.name, case.organ, case.value) for case in found.cases] == [
        ("a.nii.gz", "liver", 6),
        ("a.nii.gz", "kidney", 3),
        ("b.nii.gz", "liver", 6),
    ]
    assert found.skipped == {"b, kidney": "Its label has no voxel of value 3."}
    assert len(read) == 2
    with pytest.raises(InputError, match="does not name its segments. Name each organ and give its number"):
        find_organ_cases(*folders, {})
    with pytest.raises(InputError, match="does not name its segments, so 'liver' is unknown"):
        find_organ_cases(*folders, {"liver": "liver"})


def test_segments_that_a_label_names_are_organs(
    folders: tuple[Path, Path], add_nifti: Callable[..., None], new_phantom: Callable[..., Phantom]
) -> None:
    add_nifti("a")
    (folders[1] / "a.nii.gz").unlink()
    volume, ball = new_phantom(shape=SHAPE)
    layers = (ball * np.uint8(2), ball * np.uint8(7))
    write_label_map(folders[1] / "a", LabelMap(layers, {2: "liver", 7: "kidney"}), volume)
    found = find_organ_cases(*folders, {})
    assert [(case.organ, case.value) for case in found.cases] == [("liver", 2), ("kidney", 7)]
    assert [case.value for case in find_organ_cases(*folders, {"kidney": "kidney"}).cases] == [7]
