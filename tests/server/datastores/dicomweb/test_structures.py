"""Structure sets (RTSTRUCT) and label maps of a real PACS are labels, and final labels are stored as structure sets.

The reference is pydicom: positions of contour points in mm are computed from the headers of the images.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pydicom
import pytest
import requests
from monailabel.config import settings
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import generate_uid
from skimage.draw import polygon2mask

from baps.demo.server import running_server
from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io import read_volume, write_nifti
from baps.io.dicom.labels import read_series_headers
from baps.io.dicom.rtstruct import write_structures
from baps.server.datastores.dicomweb import PacsDatastore, open_pacs
from baps.server.labels.save_labels import save_label
from baps.server.training_cases import labelled_cases
from demo import orthanc
from tests.support.label_map_segmentation import make_label_map
from tests.support.small_series import write_small_series

pytestmark = pytest.mark.skipif(bool(orthanc.missing()), reason=orthanc.missing())
NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)


@pytest.fixture(scope="module")
def address(empty_orthanc: Callable[[], str]) -> str:
    return empty_orthanc()


class Stored:
    """A series in the PACS in which no two voxels have the same value."""

    def __init__(self, address: str, folder: Path, tilt: float = 0.0) -> None:
        self.address, self.folder = address, folder
        write_small_series(folder, tilt=tilt)
        self.files = sorted(folder.iterdir())
        for number, file in enumerate(self.files):
            image = pydicom.dcmread(file)
            count = image.Rows * image.Columns
            image.PixelData = (np.arange(count) + number * count).astype("<i2").tobytes()
            image.save_as(file)
            _send(address, image)
        self.images = [pydicom.dcmread(file) for file in self.files]
        self.uid, self.headers = str(self.images[0].SeriesInstanceUID), read_series_headers(folder)

    def values(self, label: Dataset, number: int = 0) -> set[int]:
        """Return the image's values inside the contours of a structure, by positions in mm."""
        values: set[int] = set()
        for contour in label.ROIContourSequence[number].ContourSequence:
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            for image in self.images:
                along = np.reshape(image.ImageOrientationPatient, (2, 3)).astype(float)
                away = points - np.array(image.ImagePositionPatient, float)
                if np.abs(away @ np.cross(*along)).max() < 0.01:
                    pixels = away @ along.T / np.array(image.PixelSpacing, float)[::-1]
                    inside = polygon2mask((image.Rows, image.Columns), pixels[:, ::-1])
                    values |= set(image.pixel_array[inside].tolist())
        return values


def _send(address: str, dataset: Dataset) -> None:
    file = pydicom.filebase.DicomBytesIO()
    dataset.save_as(file, write_like_original=False)
    requests.post(f"{address}/instances", data=file.getvalue(), timeout=30).raise_for_status()


def _open(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label_format: str = "seg") -> PacsDatastore:
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path / "cache"))
    return open_pacs(f"{address}/dicom-web", label_format=label_format)


def _boxes(stored: Stored, boxes: Mapping[str, tuple[int, int, int, int, int]]) -> FileDataset:
    """Return a structure set of another program: for each name the file, and first and last column and row in mm."""
    image = read_volume(stored.folder)
    empty = {name: np.zeros(image.shape, bool) for name in boxes}
    label = write_structures(stored.headers, image, empty, NOON)
    for structure, (file, left, right, top, bottom) in zip(label.ROIContourSequence, boxes.values(), strict=True):
        source = stored.images[file]
        along = np.reshape(source.ImageOrientationPatient, (2, 3)).astype(float)
        down, across = map(float, source.PixelSpacing)
        contour = Dataset()
        contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", 4
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        places = [
            np.array(source.ImagePositionPatient, float)
            + (column - 0.5) * across * along[0]
            + (row - 0.5) * down * along[1]
            for column, row in corners
        ]
        contour.ContourData = [f"{value:.6f}" for value in np.ravel(places)]
        structure.ContourSequence = [contour]
    return label


def _box_values(stored: Stored, file: int, left: int, right: int, top: int, bottom: int) -> list[int]:
    values: NDArray[np.int16] = stored.images[file].pixel_array[top:bottom, left:right]
    return sorted(values.ravel().tolist())


def _trained(store: PacsDatastore, uid: str, organ: str) -> list[int]:
    cases, skipped = labelled_cases(store, {organ: 1}, {})
    assert not [reason for image, reason in skipped.items() if uid in image]
    (case,) = [one for one in cases[organ] if uid in one.image.name]
    values: list[int] = read_volume(case.image).voxels[read_volume(case.labels).voxels == case.value].tolist()
    return sorted(values)


@pytest.mark.parametrize("tilt", [0.0, 0.5])
def test_a_structure_set_marks_the_voxels_inside_its_contours(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tilt: float
) -> None:
    stored = Stored(address, tmp_path / "a", tilt)
    store = _open(address, tmp_path, monkeypatch)
    assert stored.uid not in store.get_labeled_images()
    box = (2, 4, 9, 3, 8)
    _send(address, _boxes(stored, {"spleen": box}))
    store.invalidate()
    assert stored.uid in store.get_labeled_images()
    assert _trained(store, stored.uid, "spleen") == _box_values(stored, *box)


def test_unreadable_structures_do_not_count(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Stored(address, tmp_path / "a")
    store = _open(address, tmp_path, monkeypatch)
    label = _boxes(stored, dict.fromkeys(("moved", "elsewhere", "model", "good"), (1, 2, 6, 2, 6)))
    (contour,) = label.ROIContourSequence[0].ContourSequence
    normal = np.cross(*np.reshape(stored.images[1].ImageOrientationPatient, (2, 3)).astype(float))
    points = np.array(contour.ContourData, float).reshape(-1, 3) + 1.2 * normal
    contour.ContourData = [f"{value:.6f}" for value in points.ravel()]
    label.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = generate_uid()
    label.StructureSetROISequence[2].ROIGenerationAlgorithm = "AUTOMATIC"
    _send(address, label)
    segments = store.newest_segments(stored.uid)[stored.uid]
    assert sorted(segments) == ["elsewhere", "good", "moved"]
    for name, reason in (("moved", "off the nearest slice"), ("elsewhere", "another frame of reference")):
        for _ in range(2):  # The reason is registered.
            with pytest.raises(InputError, match=reason):
                store.organ(stored.uid, segments[name])
    assert _trained(store, stored.uid, "good") == _box_values(stored, 1, 2, 6, 2, 6)
    labels = pydicom.dcmread(_download(store, stored.uid, tmp_path))
    assert [structure.ROIName for structure in labels.StructureSetROISequence] == ["good"]
    other = Stored(address, tmp_path / "b")
    moved = _boxes(other, {"moved": (1, 2, 6, 2, 6)})
    moved.ROIContourSequence[0].ContourSequence[0].ContourData = [*contour.ContourData[:-1], "500"]
    _send(address, moved)
    store.invalidate()
    with pytest.raises(InputError, match="off the nearest slice"):
        store.get_label_uri(other.uid, "final")
    assert other.uid not in store.get_labeled_images()


def _download(store: PacsDatastore, uid: str, folder: Path) -> Path:
    store.label_to_rtstruct(uid).save_as(folder / "rt.dcm", write_like_original=False)
    return folder / "rt.dcm"


def test_the_newest_label_of_any_format_is_used(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Stored(address, tmp_path / "a")
    store, image = _open(address, tmp_path, monkeypatch), read_volume(stored.folder)
    mask = np.zeros(image.shape, bool)
    mask[2:5, 2:5, 3] = True
    label_map = make_label_map(stored.headers, image, {"spleen": mask, "liver": np.roll(mask, 6, 0)})
    label_map.ContentDate = label_map.SeriesDate = "20260401"
    old, new = (_boxes(stored, {"spleen": (number, 4, 9, 3, 8)}) for number in (1, 4))
    new.StructureSetDate = "20260501"
    _send(address, old)
    assert _trained(store, stored.uid, "spleen") == _box_values(stored, 1, 4, 9, 3, 8)
    _send(address, label_map)
    store.invalidate()
    assert _trained(store, stored.uid, "spleen") == sorted(image.voxels[mask].tolist())
    assert _trained(store, stored.uid, "liver") == sorted(image.voxels[np.roll(mask, 6, 0)].tolist())
    _send(address, new)
    store.invalidate()
    assert _trained(store, stored.uid, "spleen") == _box_values(stored, 4, 4, 9, 3, 8)
    assert _trained(store, stored.uid, "liver") == sorted(image.voxels[np.roll(mask, 6, 0)].tolist())


@pytest.mark.parametrize("label_format", ["seg", "rtstruct", "both"])
def test_final_labels_are_stored_in_the_configured_format(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label_format: str
) -> None:
    stored = Stored(address, tmp_path / "a", tilt=0.5)
    store = _open(address, tmp_path, monkeypatch, label_format)
    image = read_volume(Path(store.get_image_uri(stored.uid)))
    mask = np.zeros(image.shape, np.uint8)
    mask[5:9, 4:9, 1:4], mask[6, 6, 2] = 1, 0  # With a hole.
    values = set(image.voxels[mask > 0].tolist())
    write_nifti(tmp_path / "label.nii.gz", Volume(mask, image.affine))
    info = {"label_info": [{"name": "spleen", "idx": 1}], "author": "Anna"}
    save_label(store, {"spleen": 1}, stored.uid, tmp_path / "label.nii.gz", "final", info, True)
    assert not list((tmp_path / "cache").rglob("unsent/*"))
    instances = requests.post(
        f"{address}/tools/find",
        json={"Level": "Instance", "Query": {"StudyInstanceUID": str(stored.images[0].StudyInstanceUID)}},
        timeout=30,
    ).json()
    objects = [
        pydicom.dcmread(
            pydicom.filebase.DicomBytesIO(requests.get(f"{address}/instances/{instance}/file", timeout=30).content)
        )
        for instance in instances
    ]
    kinds = sorted(stored_object.Modality for stored_object in objects if stored_object.Modality != "CT")
    assert kinds == {"seg": ["SEG"], "rtstruct": ["RTSTRUCT"], "both": ["RTSTRUCT", "SEG"]}[label_format]
    for label in objects:
        if label.Modality == "RTSTRUCT":
            assert stored.values(label) == values
            assert label.OperatorsName == "Anna"
    assert stored.uid in store.get_labeled_images()
    again = open_pacs(f"{address}/dicom-web")
    assert _trained(again, stored.uid, "spleen") == sorted(values)
    (segment, *_) = again.newest_segments(stored.uid)[stored.uid]["spleen"]
    annotated = again.organ(stored.uid, [segment]).slices
    assert annotated == ({1, 2, 3} if label_format == "rtstruct" else set(range(6)))
    assert stored.values(again.label_to_rtstruct(stored.uid)) == values


def test_a_series_without_a_frame_of_reference_is_refused(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small_series(tmp_path / "a")
    for file in (tmp_path / "a").iterdir():
        image = pydicom.dcmread(file)
        del image.FrameOfReferenceUID
        _send(address, image)
    store = _open(address, tmp_path, monkeypatch, "both")
    uid = str(image.SeriesInstanceUID)
    volume = read_volume(Path(store.get_image_uri(uid)))
    write_nifti(tmp_path / "label.nii.gz", Volume((volume.voxels > 400).astype(np.uint8), volume.affine))
    with pytest.raises(InputError, match="An RTSTRUCT cannot be made.*FrameOfReferenceUID"):
        save_label(store, {"spleen": 1}, uid, tmp_path / "label.nii.gz", "final", {})
    store.invalidate()
    assert uid not in store.get_labeled_images()
    assert not list((tmp_path / "cache").rglob("unsent/*"))


@pytest.mark.slow
def test_plastimatch_reads_exported_structure_sets(address: str, tmp_path: Path) -> None:
    program = shutil.which("plastimatch")
    if not program:
        pytest.skip("plastimatch is not installed: apt-get install plastimatch")
    studies = tmp_path / "studies"
    stored = Stored(address, studies / "a")
    image = read_volume(stored.folder)
    write_nifti(studies / "plain.nii.gz", Volume(image.voxels, image.affine))
    mask = np.zeros(image.shape, np.uint8)
    mask[5:9, 4:9, 1:4] = 1
    write_nifti(tmp_path / "label.nii.gz", Volume(mask, image.affine))
    expected = {"label_info": [{"name": "spleen", "idx": 1}]}
    for name, where in (("folder", str(studies)), ("pacs", f"{address}/dicom-web")):
        uid = "a" if name == "folder" else stored.uid
        (tmp_path / name).mkdir()
        set_to = {"labels": "spleen", "adapters": str(tmp_path / name / "adapters"), "pacs_label_format": "both"}
        with running_server(where, tmp_path / name / "log", set_to) as (server, _):
            get = f"{server}/datastore/label/rtstruct"
            assert requests.get(get, params={"image": "1.2.3"}, timeout=60).status_code == 404
            missing = requests.get(get, params={"image": uid}, timeout=60)
            assert (missing.status_code, "no label" in missing.json()["detail"]) == (404, True)
            for one in {uid, "plain"} if name == "folder" else {uid}:
                with (tmp_path / "label.nii.gz").open("rb") as file:
                    response = requests.put(
                        f"{server}/datastore/label",
                        params={"image": one, "tag": "final"},
                        data={"params": json.dumps(expected)},
                        files={"label": ("label.nii.gz", file)},
                        timeout=120,
                    )
                assert response.status_code == 200, response.text
            if name == "folder":
                plain = requests.get(get, params={"image": "plain"}, timeout=60)
                assert (plain.status_code, "is no DICOM series" in plain.json()["detail"]) == (400, True)
            response = requests.get(get, params={"image": uid}, timeout=60)
            assert (response.status_code, response.headers["Content-Type"]) == (200, "application/dicom")
        (tmp_path / name / "rt.dcm").write_bytes(response.content)
        command = [program, "convert", "--input", tmp_path / name / "rt.dcm", "--referenced-ct", stored.folder]
        command += ["--output-prefix", tmp_path / name / "masks", "--prefix-format", "nrrd"]
        subprocess.run(command, check=True, capture_output=True)
        np.testing.assert_array_equal(read_volume(tmp_path / name / "masks" / "spleen.nrrd").voxels > 0, mask > 0)
        noted = (tmp_path / name / "adapters" / "audit.jsonl").read_text().splitlines()
        assert sum('"fetch an image or a label"' in line for line in noted) >= 3
