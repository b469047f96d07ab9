"""What viewers store in a real PACS through the server: looked into, signed, and dated."""

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
from baps.server.datastores.dicomweb.stow_check import read_object, sign, written
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
    ("kind", "body", "said"),
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
def test_malformed_requests_to_store_objects_are_refused(kind: str, body: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        split_objects(kind, body)


@dataclass
class Place:
    """A PACS with one series, and what makes labels for it."""

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
            made = write_segmentation(headers, image, {"spleen": mask}, {"spleen": frozenset()}, when, "ghost")
        else:
            made = write_structures(headers, image, {"spleen": mask}, when, "ghost")
        for keyword, value in changes.items():
            setattr(made, keyword, value)
        return made

    def post(self, *objects: Dataset, user: str = "", confirms: bool = False, path: str = "studies") -> list[str]:
        contents = []
        for made in objects:
            content = io.BytesIO()
            made.save_as(content, write_like_original=False)
            contents.append(content.getvalue())
        body = join_objects(contents, "part")
        answer, notes = self.store.store_objects("", path, {"content-type": KIND}, body, user, confirms)
        assert answer.status_code == 200
        return notes

    def stored(self, made: Dataset) -> Dataset:
        """What the PACS has of an object, by a client that knows nothing of us."""
        client = DICOMwebClient(self.address)
        return client.retrieve_instance(made.StudyInstanceUID, made.SeriesInstanceUID, made.SOPInstanceUID)

    def count(self) -> int:
        return len(DICOMwebClient(self.address).search_for_instances(limit=1000))

    def trained(self) -> NDArray[np.bool_]:
        (case,) = labelled_cases(open_pacs(self.address), LABELS, {})[0]["spleen"]
        found: NDArray[np.bool_] = read_labels(case.labels, read_volume(case.image)) > 0
        return found


@pytest.fixture(scope="module")
def shared(empty_orthanc: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    from monailabel.config import settings

    folder, address = tmp_path_factory.mktemp("stow"), empty_orthanc()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(folder / "cache"))
        series = write_series(folder / "dicom", "axial")
        orthanc.store(address, folder / "dicom")
        yield Place(open_pacs(f"{address}/dicom-web"), f"{address}/dicom-web", series, folder)


@pytest.fixture
def place(shared: Place) -> Iterator[Place]:
    """Without labels."""
    import requests

    yield shared
    root = shared.address.removesuffix("/dicom-web")
    for one in requests.get(f"{root}/series?expand", timeout=30).json():
        if one["MainDicomTags"]["Modality"] != "CT":
            requests.delete(f"{root}/series/{one['ID']}", timeout=30)
    shared.store.invalidate()


def _spleen(place: Place) -> NDArray[np.bool_]:
    return np.asarray(place.series.labels == 2)


@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])
def test_the_user_who_stores_an_object_is_its_author(place: Place, kind: str) -> None:
    tomorrow = datetime.now(timezone.utc) + timedelta(days=1)
    made = place.seg(_spleen(place), tomorrow, kind)
    if kind == "RTSTRUCT":
        made.ApprovalStatus, made.ReviewerName = "APPROVED", "ghost"
    assert place.post(made, user="ben") == []
    stored = place.stored(made)
    assert "ghost" not in str(stored)
    assert str(stored.get("ContentCreatorName" if kind == "SEG" else "OperatorsName")) == "ben"
    assert stored.get("ApprovalStatus", "UNAPPROVED") == "UNAPPROVED"
    assert tomorrow.strftime("%Y%m%d") not in str(stored)
    assert stored.PatientName == made.PatientName
    np.testing.assert_array_equal(place.trained(), _spleen(place))


def _other_patient(made: Dataset, _: Place) -> None:
    made.PatientID = "ANOTHER"


def _no_patient(made: Dataset, _: Place) -> None:
    made.PatientID = ""


def _other_name(made: Dataset, _: Place) -> None:
    made.PatientName = "ANOTHER^ONE"


def _other_study(made: Dataset, _: Place) -> None:
    made.StudyInstanceUID = generate_uid()


def _other_reference(made: Dataset, _: Place) -> None:
    made.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()


def _into_the_images(made: Dataset, place: Place) -> None:
    made.SeriesInstanceUID = place.series.uid


def _over_an_image(made: Dataset, place: Place) -> None:
    file = next((place.folder / "dicom").glob("*.dcm"))
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = pydicom.dcmread(file).SOPInstanceUID


def _an_image(made: Dataset, _: Place) -> None:
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"


def _a_document(made: Dataset, _: Place) -> None:
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.104.1"


def _an_image_by_modality(made: Dataset, _: Place) -> None:
    made.Modality = "CT"


@pytest.mark.parametrize(
    "change",
    [_other_patient, _no_patient, _other_name, _other_study, _other_reference, _into_the_images, _over_an_image,
     _an_image, _a_document, _an_image_by_modality],
)  # fmt: skip
def test_objects_that_do_not_belong_to_the_study_are_refused(
    place: Place, change: Callable[[Dataset, Place], None]
) -> None:
    before, made = place.count(), place.seg(_spleen(place))
    change(made, place)
    with pytest.raises(InputError):
        place.post(made)
    good = place.seg(_spleen(place))
    with pytest.raises(InputError):
        place.post(good, made)  # Nor is anything else of the request.
    with pytest.raises(InputError):
        place.post(good, good)
    assert place.count() == before


def test_an_existing_object_is_not_replaced(place: Place) -> None:
    made = place.seg(_spleen(place))
    place.post(made, user="ben")
    with pytest.raises(InputError, match="already"):
        place.post(made, user="carl")
    with pytest.raises(InputError, match="not served here"):
        place.post(place.seg(_spleen(place)), path=f"studies/{generate_uid()}")
    place.post(place.seg(_spleen(place)), user="ben", path=f"studies/{made.StudyInstanceUID}")
    assert str(place.stored(made).ContentCreatorName) == "ben"


@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])
def test_an_exported_label_that_takes_an_organ_away_is_disputed(place: Place, kind: str) -> None:
    whole = _spleen(place)
    place.post(place.seg(whole), user="anna")
    less = whole & (np.cumsum(whole.ravel()).reshape(whole.shape) < whole.sum() // 5)
    attack = place.seg(less, kind=kind)
    told = place.post(attack, user="ben")
    assert any("This takes spleen away from the version of anna" in one for one in told)
    assert "not confirmed" in str(place.stored(attack))
    np.testing.assert_array_equal(place.trained(), whole)
    half = whole & (np.indices(whole.shape)[0] % 3 > 0)
    place.post(place.seg(half), user="ben")  # An ordinary correction.
    np.testing.assert_array_equal(place.trained(), half)
    place.post(place.seg(less), user="ben")
    np.testing.assert_array_equal(place.trained(), half)
    assert place.post(place.seg(less), user="tess", confirms=True) == []
    np.testing.assert_array_equal(place.trained(), less)


def test_a_saved_label_that_takes_an_organ_away_is_disputed(place: Place, tmp_path: Path) -> None:
    from baps.io import write_nifti

    whole = _spleen(place)
    less = whole & (np.cumsum(whole.ravel()).reshape(whole.shape) < whole.sum() // 5)

    def save(mask: NDArray[np.bool_], author: str, confirms: bool = False) -> list[str]:
        image = read_volume(Path(place.store.get_image_uri(place.series.uid)))
        write_nifti(tmp_path / "label.nii.gz", Volume(mask.astype(np.uint8), image.affine))
        said = {"label_info": [{"name": "spleen", "idx": 1}], "author": author, "slices": list(range(mask.shape[2]))}
        file = tmp_path / "label.nii.gz"
        return list(save_label(place.store, LABELS, place.series.uid, file, "final", said, confirms=confirms))

    assert save(whole, "anna") == []
    assert "This takes spleen away" in " ".join(save(less, "ben"))
    np.testing.assert_array_equal(place.trained(), whole)
    assert save(less, "tess", confirms=True) == []
    np.testing.assert_array_equal(place.trained(), less)


@pytest.mark.parametrize("zone", ["", "+0000", "-1100", "+1400", "nonsense"])
@pytest.mark.parametrize(
    ("date", "time"), [("99991231", "235959"), ("20990101", ""), ("nodate", "x"), ("20200101", "120000")]
)
def test_dates_in_the_future_are_replaced(zone: str, date: str, time: str) -> None:
    made = Dataset()
    made.SOPClassUID, made.Modality = "1.2.840.10008.5.1.4.1.1.88.22", "SR"
    made.StudyInstanceUID, made.SeriesInstanceUID, made.SOPInstanceUID = "1.2", "1.2.3", "1.2.3.4"
    made.ContentDate, made.ContentTime, made.StudyDate = date, time, "20990101"
    made.TimezoneOffsetFromUTC = zone
    inside = Dataset()
    inside.DateTime = "20990101120000"
    made.ContentSequence = [inside]
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    made.is_little_endian, made.is_implicit_VR = True, False
    read = read_object(written(made))
    now = datetime.now().astimezone()
    sign(read, "ben", False, now)
    latest = (now + timedelta(days=1)).strftime("%Y%m%d")
    assert (read.ContentDate == date) == date.startswith("2020")
    assert "20200101" <= read.ContentDate <= latest
    assert read.ContentSequence[0].DateTime < latest + "9"
    assert read.StudyDate == "20990101"  # That is the study's own.
