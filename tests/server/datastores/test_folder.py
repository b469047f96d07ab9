"""The datastore of a folder: files of all formats, and DICOM series, one folder each."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image

from baps.errors import BapsError, InputError, NotFoundError
from baps.imaging.volume import Volume
from baps.io import read_labels, read_volume, write_nrrd
from baps.server.datastores.folder import StudiesDatastore
from baps.server.labels.save_labels import save_label
from baps.server.strategies.usable import first_usable
from stress.fuzz.displacements import Slice, misplaced, write_enhanced
from tests.support.paths import ROOT
from tests.support.sites import SAMPLES

SERIES = ROOT / "sample-data" / "dicom" / "ct_01"


def open_datastore(folder: Path) -> StudiesDatastore:
    return StudiesDatastore(str(folder), auto_reload=False, read_only=False)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    shutil.copy(SAMPLES / "images" / "ct_01.nii.gz", folder)
    shutil.copytree(SERIES, folder / "1.2.840.113.7")  # as a PACS exports it
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(folder / "photo.png")
    np.savez(folder / "slice.npz", img=np.zeros((8, 9), np.float32), seg=np.zeros((8, 9), np.uint8))
    (folder / "notes.txt").write_text("not an image")
    (folder / "empty").mkdir()
    return folder


def test_all_formats_are_listed_by_name(mixed: Path) -> None:
    assert sorted(open_datastore(mixed).list_images()) == ["1.2.840.113.7", "ct_01", "photo", "slice"]


def test_a_second_start_lists_the_same_images(mixed: Path) -> None:
    open_datastore(mixed)
    assert sorted(open_datastore(mixed).list_images()) == ["1.2.840.113.7", "ct_01", "photo", "slice"]


def test_a_series_is_served_as_nifti_without_patient_data(mixed: Path) -> None:
    datastore = open_datastore(mixed)
    path = Path(datastore.get_image_uri("1.2.840.113.7"))
    assert path.name == "1.2.840.113.7.nii.gz"
    series, converted = read_volume(mixed / "1.2.840.113.7"), read_volume(path)
    np.testing.assert_array_equal(series.voxels, converted.voxels)
    assert series.same_geometry(converted)
    header = nibabel.load(path).header
    assert b"PHANTOM" not in header.binaryblock.upper()
    assert (datastore.patient("1.2.840.113.7"), datastore.patient("ct_01")) == ("SAMPLE-CT-01", None)
    # The information for viewers and for MONAI Label's log has the converted file and no patient.
    info = datastore.get_image_info("1.2.840.113.7")
    assert (info["path"], info["name"]) == (str(path), path.name)
    assert "SAMPLE" not in json.dumps(info)


def test_a_series_is_converted_once_per_change(mixed: Path) -> None:
    datastore = open_datastore(mixed)
    path = Path(datastore.get_image_uri("1.2.840.113.7"))
    converted_at = path.stat().st_mtime_ns
    assert Path(datastore.get_image_uri("1.2.840.113.7")).stat().st_mtime_ns == converted_at
    slices = sorted((mixed / "1.2.840.113.7").iterdir())
    slices[-1].unlink()
    os.utime(mixed / "1.2.840.113.7")
    again = read_volume(Path(datastore.get_image_uri("1.2.840.113.7")))
    assert again.shape[2] == len(slices) - 1


def test_images_may_be_in_a_subfolder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    shutil.copy(SAMPLES / "images" / "ct_01.nii.gz", tmp_path / "images")
    shutil.copytree(SERIES, tmp_path / "images" / "series")
    datastore = open_datastore(tmp_path)
    assert sorted(datastore.list_images()) == ["ct_01", "series"]
    assert Path(datastore.get_image_uri("series")).is_file()


def test_labels_of_other_formats_are_listed(mixed: Path) -> None:
    final = mixed / "labels" / "final"
    final.mkdir(parents=True)
    Image.fromarray(np.ones((8, 9), np.uint8)).save(final / "photo.png")
    datastore = open_datastore(mixed)
    assert datastore.get_labeled_images() == ["photo"]
    assert datastore.get_label_uri("photo", "final") == str(final / "photo.png")
    assert json.loads((mixed / "datastore_v2.json").read_text())["objects"]["photo"]["labels"]["final"]["ext"] == ".png"


def test_a_broken_series_is_listed_and_refused(mixed: Path) -> None:
    slices = sorted((mixed / "1.2.840.113.7").iterdir())
    slices[3].write_bytes(slices[3].read_bytes()[:-500])
    datastore = open_datastore(mixed)
    assert "1.2.840.113.7" in datastore.list_images()
    assert "path" in datastore.get_image_info("1.2.840.113.7")
    with pytest.raises(InputError, match=f"{slices[3].name} cannot be read"):
        datastore.get_image_uri("1.2.840.113.7")
    assert not list((mixed / ".converted").glob("*.nii*"))


def test_upper_case_suffixes_are_listed(tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "images" / "ct_01.nii.gz", tmp_path / "A.NII.GZ")
    datastore = open_datastore(tmp_path)
    assert datastore.list_images() == ["A"]
    assert datastore.get_image_uri("A").endswith("A.NII.GZ")


def test_a_label_is_replaced_atomically(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datastore = open_datastore(mixed)
    first = mixed.parent / "first.nii.gz"
    shutil.copy(SAMPLES / "labels" / "ct_01.nii.gz", first)

    def full(_: object, target: Path) -> None:
        Path(target).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    def save() -> None:
        save_label(datastore, {"spleen": 2}, "ct_01", first, "final", {})

    with monkeypatch.context() as patched:
        patched.setattr("baps.annotations.history.shutil.copyfile", full)
        with pytest.raises(BapsError, match="could not be saved .No space left on device.*submit again"):
            save()
    assert datastore.get_labeled_images() == []
    assert not list((mixed / "labels" / "final").iterdir())
    assert datastore.history.labels() == []
    save()
    saved = (mixed / "labels" / "final" / "ct_01.nii.gz").read_bytes()
    listed = (mixed / "datastore_v2.json").read_text()
    with monkeypatch.context() as patched:
        patched.setattr("baps.utils.atomic_write.os.replace", lambda *_: full(_[0], mixed.parent / "nowhere"))
        with pytest.raises(BapsError, match="No space left"):
            save()
    assert (mixed / "labels" / "final" / "ct_01.nii.gz").read_bytes() == saved
    assert (mixed / "datastore_v2.json").read_text() == listed
    assert not list(mixed.rglob(".partial*"))


def test_a_label_is_not_saved_if_its_history_cannot_be_written(mixed: Path) -> None:
    datastore = open_datastore(mixed)
    label = SAMPLES / "labels" / "ct_01.nii.gz"
    (mixed / "labels-history").write_text("a file, no folder")
    with pytest.raises(BapsError, match="could not be saved"):
        save_label(datastore, {"spleen": 2}, "ct_01", label, "final", {})


def test_a_label_of_another_format_replaces_the_earlier_one(mixed: Path) -> None:
    datastore = open_datastore(mixed)
    label = SAMPLES / "labels" / "ct_01.nii.gz"
    save_label(datastore, {"spleen": 2}, "ct_01", label, "final", {})
    other = mixed.parent / "label.nrrd"
    voxels = read_labels(label, image := read_volume(mixed / "ct_01.nii.gz"))
    write_nrrd(other, Volume(voxels, image.affine))
    save_label(datastore, {"spleen": 2}, "ct_01", other, "final", {})
    assert [path.name for path in (mixed / "labels" / "final").iterdir()] == ["ct_01.nrrd"]
    assert [version.suffix for version in datastore.history.versions("ct_01", "final")] == [".nii.gz", ".nrrd"]


def test_a_save_that_a_crash_interrupted_is_completed_at_the_next_start(mixed: Path) -> None:
    datastore, listed, label = (
        open_datastore(mixed),
        mixed / "datastore_v2.json",
        mixed / "labels" / "final" / "ct_01.nii.gz",
    )
    samples = [SAMPLES / "labels" / f"{case}.nii.gz" for case in ("ct_01", "ct_02")]
    datastore.save_label("ct_01", str(samples[0]), "final", {"author": "anna"})
    before = listed.read_bytes()
    datastore.save_label("ct_01", str(samples[1]), "final", {"author": "ben"})
    newest = datastore.history.versions("ct_01", "final")[-1].file.parent
    newest.rename(f"{newest}.saving")  # As after a crash between the rename and the update of the index.
    listed.write_bytes(before)
    label.write_bytes(samples[0].read_bytes())
    again = open_datastore(mixed)
    assert label.read_bytes() == samples[1].read_bytes()
    assert (again.get_label_info("ct_01", "final")["author"], newest.is_dir()) == ("ben", True)
    assert again.get_labeled_images() == ["ct_01"]


def _two_echoes(path: Path) -> list[Slice]:
    """Write an object with two volumes and unordered frames."""
    values = np.arange(1, 1 + 8 * 30, dtype=np.int16).reshape(8, 5, 6)
    slices = [
        Slice(values[k], np.array([-4.0, 3, 2.0 * (k % 4)]), np.eye(3)[:2], (1, 1), 1, (("EchoTime", 10.0 + k // 4),))
        for k in range(8)
    ]
    write_enhanced(path, [slices[k] for k in (0, 2, 4, 1, 3, 5, 7, 6)], np.random.default_rng(0))
    return slices


def test_the_volumes_of_an_object_become_images(tmp_path: Path) -> None:
    slices = _two_echoes(tmp_path / "mr.dcm")
    shutil.copytree(SERIES, tmp_path / "ct")
    datastore = open_datastore(tmp_path)
    assert sorted(datastore.list_images()) == ["ct", "mr"]
    assert first_usable(["mr", "ct"], open_datastore(shutil.copytree(tmp_path, tmp_path / "again"))) == "mr-volume1"
    shutil.rmtree(tmp_path / "again")
    with pytest.raises(InputError, match="mr holds 2 volumes, which are images of their own now .mr-volume1: .*Choose"):
        datastore.get_image_uri("mr")
    for again in (datastore, open_datastore(tmp_path)):
        assert sorted(again.list_images()) == ["ct", "mr-volume1", "mr-volume2"]
        for number in (1, 2):
            volume = read_volume(Path(again.get_image_uri(f"mr-volume{number}")))
            assert misplaced([volume], slices[4 * number - 4 : 4 * number]) == ""
        assert again.patient("mr-volume2") == "fuzz"
    label = np.zeros((6, 5, 4), np.uint8)
    label[2:4, 1:3, 1] = 1
    (tmp_path / "sent").mkdir()
    write_nrrd(tmp_path / "sent" / "label.nrrd", Volume(label, volume.affine))
    save_label(datastore, {"a": 1}, "mr-volume2", tmp_path / "sent" / "label.nrrd", "final", {})
    assert open_datastore(tmp_path).get_labeled_images() == ["mr-volume2"]
    (tmp_path / "mr.dcm").unlink()
    assert open_datastore(tmp_path).list_images() == ["ct"]


def test_the_label_of_one_of_several_volumes_is_exported_as_rtstruct(tmp_path: Path) -> None:
    _two_echoes(tmp_path / "mr.dcm")
    image = pydicom.dcmread(tmp_path / "mr.dcm")
    image.FrameOfReferenceUID, image.StudyInstanceUID = "1.2.3.4", "1.2.3.5"
    image.save_as(tmp_path / "mr.dcm")
    datastore = open_datastore(tmp_path)
    with pytest.raises(InputError, match="holds 2 volumes"):
        datastore.get_image_uri("mr")
    volume = read_volume(Path(datastore.get_image_uri("mr-volume2")))
    label = np.zeros(volume.shape, np.uint8)
    label[2:4, 1:3, 1] = 1
    (tmp_path / "sent").mkdir()
    write_nrrd(tmp_path / "sent" / "label.nrrd", Volume(label, volume.affine))
    with pytest.raises(NotFoundError, match="no label final"):
        datastore.label_to_rtstruct("mr-volume2")
    named = {"label_info": [{"name": "a", "idx": 1}]}
    save_label(datastore, {"a": 1}, "mr-volume2", tmp_path / "sent" / "label.nrrd", "final", named)
    (contour,) = datastore.label_to_rtstruct("mr-volume2").ROIContourSequence[0].ContourSequence
    assert contour.ContourImageSequence[0].ReferencedFrameNumber == 6  # The second slice of that echo.
    points = np.array(contour.ContourData, float).reshape(-1, 3)
    np.testing.assert_allclose([points.min(0), points.max(0)], [[-2.5, 3.5, 2], [-0.5, 5.5, 2]])


def test_a_single_dicom_file_is_served_with_the_geometry_of_the_server(tmp_path: Path) -> None:
    slices = [piece for piece in _two_echoes(tmp_path / "mr.dcm") if piece.attributes[0][1] == 10]
    write_enhanced(tmp_path / "mr.dcm", [slices[k] for k in (2, 0, 3, 1)], np.random.default_rng(0))
    served = SimpleITK.ReadImage(open_datastore(tmp_path).get_image_uri("mr"))
    for piece in slices:
        assert served[served.TransformPhysicalPointToIndex(piece.position)] == piece.values[0, 0]


def test_files_of_another_conversion_version_are_converted_again(mixed: Path) -> None:
    old = mixed / ".converted" / "1.2.840.113.7.nii.gz"
    old.parent.mkdir()
    old.write_bytes(b"of another geometry")
    os.utime(old, (4e9, 4e9))
    assert read_volume(Path(open_datastore(mixed).get_image_uri("1.2.840.113.7"))).shape == (128, 128, 24)
