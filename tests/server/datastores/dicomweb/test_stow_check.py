"""Objects that viewers store in a real PACS through the server are checked, signed and dated."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicomweb_client import DICOMwebClient
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io import read_labels, read_volume
from baps.io.dicom.rtstruct import write_structures
from baps.io.dicom.seg import write_segmentation
from baps.server.datastores.dicomweb import PacsDatastore, open_pacs
from baps.server.datastores.dicomweb.multipart import MAX_OBJECTS, join_objects, split_objects
from baps.server.datastores.dicomweb.stow_check import read_object, sign, to_bytes
from baps.server.labels.save_labels import save_label
from baps.server.training_cases import labelled_cases
from demo import orthanc
from tests.support.series import Series, write_series

KIND = 'multipart/related; type="application/dicom"; boundary=part'
LABELS = {"liver": 1, "spleen": 2}


@pytest.mark.parametrize(
    "kind", [KIND, "multipart/related;type=application/dicom;boundary=part", KIND.upper()[:17] + KIND[17:]]
)
def test_joined_objects_are_split_again(kind: str) -> None:
    objects = [b"one\r\n\r\ntwo", b"", b"a--part", b"\r\n--par"]
    assert split_objects(kind, join_objects(objects, "part")) == objects


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        ("application/dicom+json", b"[]", "not as application/dicom.json"),
        ('multipart/related; type="application/dicom+xml"; boundary=part', b"", "JSON and XML"),
        ('multipart/related; type="application/dicom"', b"", "names no boundary"),
        (KIND.replace("=part", "=" + "x" * 71), b"", "names no boundary"),
        (KIND, b"", "cut off"),
        (KIND, join_objects([b"one"], "part")[:-6], "cut off"),
        (KIND, b"--part\r\nContent-Type: text/html\r\n\r\n<p>\r\n--part--\r\n", "not of the type"),
        (KIND, b"--part\r\n\r\none\r\n--part--\r\n", "not of the type"),
        (KIND, join_objects([b""] * (MAX_OBJECTS + 1), "part"), "More than"),
    ],
)
def test_malformed_requests_to_store_objects_are_refused(kind: str, body: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_objects(kind, body)


@dataclass
class Pacs:
    """A PACS with one series, and functions that create labels for it."""

    store: PacsDatastore
    address: str
    series: Series
    folder: Path

    def seg(
        self, mask: NDArray[np.bool_], when: datetime | None = None, kind: str = "SEG", **changes: object
    ) -> Dataset:
        headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in (self.folder / "dicom").glob("*.dcm")]
        image = read_volume(Path(self.store.get_image_uri(self.series.uid)))
        when = when or datetime.now(timezone.utc)
        if kind == "SEG":
            label = write_segmentation(headers, image, {"spleen": mask}, {"spleen": frozenset()}, when, "ghost")
        else:
            label = write_structures(headers, image, {"spleen": mask}, when, "ghost")
        for keyword, value in changes.items():
            setattr(label, keyword, value)
        return label

    def post(self, *objects: Dataset, user: str = "", confirms: bool = False, path: str = "studies") -> list[str]:
        contents = []
        for label in objects:
            content = io.BytesIO()
            label.save_as(content, write_like_original=False)
            contents.append(content.getvalue())
        body = join_objects(contents, "part")
        response, notes = self.store.store_objects("", path, {"content-type": KIND}, body, user, confirms)
        assert response.status_code == 200
        return notes

    def stored(self, label: Dataset) -> Dataset:
        """Return an object as the PACS has it, queried directly."""
        client = DICOMwebClient(self.address)
        return client.retrieve_instance(label.StudyInstanceUID, label.SeriesInstanceUID, label.SOPInstanceUID)

    def count(self) -> int:
        return len(DICOMwebClient(self.address).search_for_instances(limit=1000))

    def trained(self) -> NDArray[np.bool_]:
        (case,) = labelled_cases(open_pacs(self.address), LABELS, {})[0]["spleen"]
        masks: NDArray[np.bool_] = read_labels(case.labels, read_volume(case.image)) > 0
        return masks


@pytest.fixture(scope="module")
def shared(empty_orthanc: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    from monailabel.config import settings

    folder, address = tmp_path_factory.mktemp("stow"), empty_orthanc()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(folder / "cache"))
        series = write_series(folder / "dicom", "axial")
        orthanc.store(address, folder / "dicom")
        yield Pacs(open_pacs(f"{address}/dicom-web"), f"{address}/dicom-web", series, folder)


@pytest.fixture
def pacs(shared: Pacs) -> Iterator[Pacs]:
    """The PACS without labels."""
    import requests

    yield shared
    root = shared.address.removesuffix("/dicom-web")
    for one in requests.get(f"{root}/series?expand", timeout=30).json():
        if one["MainDicomTags"]["Modality"] != "CT":
            requests.delete(f"{root}/series/{one['ID']}", timeout=30)
    shared.store.invalidate()


def _spleen(pacs: Pacs) -> NDArray[np.bool_]:
    return np.asarray(pacs.series.labels == 2)


@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])
def test_the_user_who_stores_an_object_is_its_author(pacs: Pacs, kind: str) -> None:
    tomorrow = datetime.now(timezone.utc) + timedelta(days=1)
    label = pacs.seg(_spleen(pacs), tomorrow, kind)
    if kind == "RTSTRUCT":
        label.ApprovalStatus, label.ReviewerName = "APPROVED", "ghost"
    assert pacs.post(label, user="ben") == []
    stored = pacs.stored(label)
    assert "ghost" not in str(stored)
    assert str(stored.get("ContentCreatorName" if kind == "SEG" else "OperatorsName")) == "ben"
    assert stored.get("ApprovalStatus", "UNAPPROVED") == "UNAPPROVED"
    assert tomorrow.strftime("%Y%m%d") not in str(stored)
    assert stored.PatientName == label.PatientName
    np.testing.assert_array_equal(pacs.trained(), _spleen(pacs))


def _other_patient(label: Dataset, _: Pacs) -> None:
    label.PatientID = "ANOTHER"


def _no_patient(label: Dataset, _: Pacs) -> None:
    label.PatientID = ""


def _other_name(label: Dataset, _: Pacs) -> None:
    label.PatientName = "ANOTHER^ONE"


def _other_study(label: Dataset, _: Pacs) -> None:
    label.StudyInstanceUID = generate_uid()


def _other_reference(label: Dataset, _: Pacs) -> None:
    label.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()


def _into_the_images(label: Dataset, pacs: Pacs) -> None:
    label.SeriesInstanceUID = pacs.series.uid


def _over_an_image(label: Dataset, pacs: Pacs) -> None:
    file = next((pacs.folder / "dicom").glob("*.dcm"))
    label.SOPInstanceUID = label.file_meta.MediaStorageSOPInstanceUID = pydicom.dcmread(file).SOPInstanceUID


def _an_image(label: Dataset, _: Pacs) -> None:
    label.SOPClassUID = label.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"


def _a_document(label: Dataset, _: Pacs) -> None:
    label.SOPClassUID = label.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.104.1"


def _an_image_by_modality(label: Dataset, _: Pacs) -> None:
    label.Modality = "CT"


@pytest.mark.parametrize(
    "change",
    [_other_patient, _no_patient, _other_name, _other_study, _other_reference, _into_the_images, _over_an_image,
     _an_image, _a_document, _an_image_by_modality],
)  # fmt: skip
def test_objects_that_do_not_belong_to_the_study_are_refused(
    pacs: Pacs, change: Callable[[Dataset, Pacs], None]
) -> None:
    before, label = pacs.count(), pacs.seg(_spleen(pacs))
    change(label, pacs)
    with pytest.raises(InputError):
        pacs.post(label)
    good = pacs.seg(_spleen(pacs))
    with pytest.raises(InputError):
        pacs.post(good, label)  # No object of the request is stored.
    with pytest.raises(InputError):
        pacs.post(good, good)
    assert pacs.count() == before


def test_an_existing_object_is_not_replaced(pacs: Pacs) -> None:
    label = pacs.seg(_spleen(pacs))
    pacs.post(label, user="ben")
    with pytest.raises(InputError, match="already"):
        pacs.post(label, user="carl")
    with pytest.raises(InputError, match="not served here"):
        pacs.post(pacs.seg(_spleen(pacs)), path=f"studies/{generate_uid()}")
    pacs.post(pacs.seg(_spleen(pacs)), user="ben", path=f"studies/{label.StudyInstanceUID}")
    assert str(pacs.stored(label).ContentCreatorName) == "ben"


@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])
def test_an_exported_label_that_takes_an_organ_away_is_disputed(pacs: Pacs, kind: str) -> None:
    whole = _spleen(pacs)
    pacs.post(pacs.seg(whole), user="anna")
    less = whole & (np.cumsum(whole.ravel()).reshape(whole.shape) < whole.sum() // 5)
    attack = pacs.seg(less, kind=kind)
    notes = pacs.post(attack, user="ben")
    assert any("This takes spleen away from the version of anna" in one for one in notes)
    assert "not confirmed" in str(pacs.stored(attack))
    np.testing.assert_array_equal(pacs.trained(), whole)
    half = whole & (np.indices(whole.shape)[0] % 3 > 0)
    pacs.post(pacs.seg(half), user="ben")  # An ordinary correction.
    np.testing.assert_array_equal(pacs.trained(), half)
    pacs.post(pacs.seg(less), user="ben")
    np.testing.assert_array_equal(pacs.trained(), half)
    assert pacs.post(pacs.seg(less), user="tess", confirms=True) == []
    np.testing.assert_array_equal(pacs.trained(), less)


def test_a_saved_label_that_takes_an_organ_away_is_disputed(pacs: Pacs, tmp_path: Path) -> None:
    from baps.io import write_nifti

    whole = _spleen(pacs)
    less = whole & (np.cumsum(whole.ravel()).reshape(whole.shape) < whole.sum() // 5)

    def save(mask: NDArray[np.bool_], author: str, confirms: bool = False) -> list[str]:
        image = read_volume(Path(pacs.store.get_image_uri(pacs.series.uid)))
        write_nifti(tmp_path / "label.nii.gz", Volume(mask.astype(np.uint8), image.affine))
        message = {"label_info": [{"name": "spleen", "idx": 1}], "author": author, "slices": list(range(mask.shape[2]))}
        file = tmp_path / "label.nii.gz"
        return list(save_label(pacs.store, LABELS, pacs.series.uid, file, "final", message, confirms=confirms))

    assert save(whole, "anna") == []
    assert "This takes spleen away" in " ".join(save(less, "ben"))
    np.testing.assert_array_equal(pacs.trained(), whole)
    assert save(less, "tess", confirms=True) == []
    np.testing.assert_array_equal(pacs.trained(), less)


@pytest.mark.parametrize("zone", ["", "+0000", "-1100", "+1400", "nonsense"])
@pytest.mark.parametrize(
    ("date", "time"), [("99991231", "235959"), ("20990101", ""), ("nodate", "x"), ("20200101", "120000")]
)
def test_dates_in_the_future_are_replaced(zone: str, date: str, time: str) -> None:
    label = Dataset()
    label.SOPClassUID, label.Modality = "1.2.840.10008.5.1.4.1.1.88.22", "SR"
    label.StudyInstanceUID, label.SeriesInstanceUID, label.SOPInstanceUID = "1.2", "1.2.3", "1.2.3.4"
    label.ContentDate, label.ContentTime, label.StudyDate = date, time, "20990101"
    label.TimezoneOffsetFromUTC = zone
    inside = Dataset()
    inside.DateTime = "20990101120000"
    label.ContentSequence = [inside]
    label.file_meta = pydicom.dataset.FileMetaDataset()
    label.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    label.is_little_endian, label.is_implicit_VR = True, False
    read = read_object(to_bytes(label))
    now = datetime.now().astimezone()
    sign(read, "ben", False, now)
    latest = (now + timedelta(days=1)).strftime("%Y%m%d")
    assert (read.ContentDate == date) == date.startswith("2020")
    assert "20200101" <= read.ContentDate <= latest
    assert read.ContentSequence[0].DateTime < latest + "9"
    assert read.StudyDate == "20990101"  # It is a date of the study.
