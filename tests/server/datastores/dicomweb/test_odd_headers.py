"""Series with nonstandard headers in a real PACS: a label is saved, or the message names the attribute."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from io import BytesIO
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import requests
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import generate_uid

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io import read_labels, read_volume, write_nifti
from baps.io.dicom.seg import write_segmentation
from baps.server.datastores.dicomweb import PacsDatastore, open_pacs
from baps.server.labels.save_labels import save_label
from baps.server.training_cases import labelled_cases
from demo import orthanc
from tests.support.paths import ROOT

FILES = sorted((ROOT / "sample-data" / "dicom" / "ct_01").glob("*.dcm"))[:8]
needs_orthanc = pytest.mark.skipif(bool(orthanc.missing()), reason=orthanc.missing())


def _raw(image: Dataset, keyword: str, vr: str, value: bytes) -> None:
    tag = Tag(keyword)
    image[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)


def _no_frame_of_reference(image: Dataset) -> None:
    del image.FrameOfReferenceUID


def _zero_in_uid(image: Dataset) -> None:
    image.StudyInstanceUID = f"{image.StudyInstanceUID[:40].rstrip('.')}.007.01"


def _dashes(image: Dataset) -> None:
    for keyword in ("StudyDate", "SeriesDate", "ContentDate", "PatientBirthDate"):
        _raw(image, keyword, "DA", b"2026-01-01")
    _raw(image, "StudyTime", "TM", b"12:00:00")


def _decimals(image: Dataset) -> None:
    _raw(image, "SeriesNumber", "IS", b"1.5 ")
    _raw(image, "InstanceNumber", "IS", f"{image.InstanceNumber}.0".encode().ljust(4))


def _latin_without_a_set(image: Dataset) -> None:
    image.pop("SpecificCharacterSet", None)
    _raw(image, "PatientName", "PN", "Müller^Jörg".encode("latin-1") + b" ")
    _raw(image, "StudyDescription", "LO", "Schädel".encode("latin-1") + b" ")


def _too_long(image: Dataset) -> None:
    _raw(image, "AccessionNumber", "SH", b"a" * 60)
    _raw(image, "StudyID", "SH", b"s" * 60)
    _raw(image, "PatientID", "LO", b"0" * 70)
    _raw(image, "SliceThickness", "DS", b"6.000000000000000000000001")


def _junk(image: Dataset) -> None:
    image.add_new(0x00091010, "UN", b"\x00\x01\xff" * 100)
    image.add_new(0x00290010, "LO", "VENDOR")
    image.add_new(0x00291010, "OB", b"\xff" * 50)
    image.ReferencedStudySequence = [Dataset()]
    image.ReferencedStudySequence[0].ReferencedSOPInstanceUID = "no uid"
    _raw(image, "PatientSex", "CS", b"male")
    _raw(image, "PatientAge", "AS", b"50")
    image.LossyImageCompression = "01"


def _missing(image: Dataset) -> None:
    for keyword in ("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
                    "AccessionNumber", "ReferringPhysicianName", "SliceThickness", "SeriesNumber"):  # fmt: skip
        image.pop(keyword, None)


ODD = [_no_frame_of_reference, _zero_in_uid, _dashes, _decimals, _latin_without_a_set, _too_long, _junk, _missing]


def _store(folder: Path, change: Callable[[Dataset], None]) -> str:
    """Store the first slices of the sample as another series, and return its SeriesInstanceUID."""
    folder.mkdir()
    series, study, patient = generate_uid(), generate_uid(), "odd-1"
    for number, file in enumerate(FILES):
        image = pydicom.dcmread(file)
        image.SeriesInstanceUID, image.StudyInstanceUID, image.PatientID = series, study, patient
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        change(image)
        image.save_as(folder / f"{number:03}.dcm")
    return str(series)


@pytest.fixture(scope="module")
def address(empty_orthanc: Callable[[], str]) -> str:
    return empty_orthanc()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from monailabel.config import settings

    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _submit(store: PacsDatastore, uid: str, folder: Path, **info: object) -> np.ndarray:  # type: ignore[type-arg]
    image = read_volume(Path(store.get_image_uri(uid)))
    mask = np.zeros(image.shape, np.uint8)
    mask[30:60, 20:70, 2:5] = 1
    write_nifti(folder / "label.nii.gz", Volume(mask, image.affine))
    named = {"label_info": [{"name": "spleen", "idx": 1}], **info}
    save_label(store, {"spleen": 1}, uid, folder / "label.nii.gz", "final", named)
    return mask > 0


def _segs(address: str, uid: str) -> list[Dataset]:
    """Return the labels of a series, queried from the PACS directly."""
    filters = {"Level": "Instance", "Query": {"Modality": "SEG"}}
    labels = []
    for one in requests.post(f"{address}/tools/find", json=filters, timeout=30).json():
        label = highdicom.seg.segread(BytesIO(requests.get(f"{address}/instances/{one}/file", timeout=30).content))
        if label.ReferencedSeriesSequence[0].SeriesInstanceUID == uid:
            labels.append(label)
    return labels


@needs_orthanc
@pytest.mark.parametrize("change", ODD, ids=lambda change: change.__name__[1:])
@pytest.mark.parametrize("metadata", [True, False], ids=["by metadata", "by objects"])
def test_a_label_is_saved_despite_odd_headers(
    address: str,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Dataset], None],
    metadata: bool,
) -> None:
    uid = _store(tmp_path / "odd", change)
    orthanc.store(address, tmp_path / "odd")
    store = open_pacs(f"{address}/dicom-web")
    if not metadata:

        def broken(*_: str) -> None:
            response = requests.Response()
            response.status_code = 500
            raise requests.HTTPError(response=response)

        monkeypatch.setattr(store._client, "retrieve_series_metadata", broken)
    mask = _submit(store, uid, tmp_path)
    _submit(store, uid, tmp_path)
    assert uid in store.get_labeled_images()
    other = open_pacs(f"{address}/dicom-web")
    np.testing.assert_array_equal(
        read_labels(Path(other.get_label_uri(uid, "final")), read_volume(Path(other.get_image_uri(uid)))) > 0, mask
    )
    cases, skipped = labelled_cases(other, {"spleen": 1}, {})
    assert not [name for name in skipped if name.startswith(uid)]
    assert any(uid in str(case.image) for case in cases["spleen"])
    labels = _segs(address, uid)
    assert len(labels) == 2
    first = pydicom.dcmread(tmp_path / "odd" / "000.dcm")
    for label in labels:
        assert label.StudyInstanceUID == first.StudyInstanceUID
        assert label.PatientID == first.PatientID
        assert str(label.PatientName) == str(first.get("PatientName", ""))
        assert label.pixel_array.sum() == mask.sum()
    assert len({label.FrameOfReferenceUID for label in labels}) == 1
    assert labels[0].FrameOfReferenceUID.is_valid


CASES = ROOT.parent / "shared" / "cases"


@needs_orthanc
@pytest.mark.parametrize("case", ["pacs_no_frame_of_reference", "pacs_study_uid_zero"])
def test_reported_cases(address: str, cache: Path, tmp_path: Path, case: str) -> None:
    folder = CASES / case / "in"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    orthanc.store(address, folder)
    store, uid = open_pacs(f"{address}/dicom-web"), str(pydicom.dcmread(folder / "000.dcm").SeriesInstanceUID)
    image = read_volume(Path(store.get_image_uri(uid)))
    mask = np.zeros(image.shape, np.uint8)
    mask[8:12, 9:14, 3:5] = 1
    write_nifti(tmp_path / "label.nii.gz", Volume(mask, image.affine))
    named = {"label_info": [{"name": "spleen", "idx": 1}]}
    save_label(store, {"spleen": 1}, uid, tmp_path / "label.nii.gz", "final", named)
    assert uid in store.get_labeled_images()
    np.testing.assert_array_equal(read_labels(Path(store.get_label_uri(uid, "final")), image), mask)
    cases, _ = labelled_cases(open_pacs(f"{address}/dicom-web"), {"spleen": 1}, {})
    assert uid in {one.image.name.removesuffix(".nii.gz") for one in cases["spleen"]}


@needs_orthanc
def test_a_name_that_is_too_long_for_dicom_is_refused(address: str, cache: Path, tmp_path: Path) -> None:
    uid = _store(tmp_path / "odd", lambda _: None)
    orthanc.store(address, tmp_path / "odd")
    store = open_pacs(f"{address}/dicom-web")
    for name in ("a" * 65, "left\\right", " spleen"):
        with pytest.raises(InputError, match="SegmentLabel"):
            _submit(store, uid, tmp_path, label_info=[{"name": name, "idx": 1}])
    assert _segs(address, uid) == []
    assert uid not in store.get_labeled_images()
    assert not list(cache.rglob("unsent/*"))


def _sources() -> tuple[list[Dataset], Volume]:
    folder = FILES[0].parent
    return [pydicom.dcmread(file, stop_before_pixels=True) for file in sorted(folder.glob("*.dcm"))], read_volume(
        folder
    )


@pytest.mark.parametrize(
    ("keyword", "value", "message"),
    [
        ("StudyInstanceUID", None, "StudyInstanceUID"),
        ("SOPInstanceUID", None, "SOPInstanceUID"),
        ("PatientID", "M\N{REPLACEMENT CHARACTER}ller", "PatientID.*SpecificCharacterSet"),
        ("PatientID", "another", "differ in PatientID"),
        ("PixelSpacing", None, "has no pixel size .PixelSpacing."),
    ],
)
def test_a_missing_required_attribute_is_named(keyword: str, value: str | None, message: str) -> None:
    sources, image = _sources()
    del sources[3][keyword]
    if value is not None:
        setattr(sources[3], keyword, value)

    masks = {"spleen": image.voxels > 100}
    with pytest.raises(InputError, match=message) as caught:
        write_segmentation(sources, image, masks, {"spleen": frozenset()}, datetime.now(timezone.utc))
    assert "ller" not in str(caught.value)
