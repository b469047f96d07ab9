"""Check objects that a viewer stores in the PACS (STOW-RS): class, author, times, patient, study and references."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pydicom.valuerep import DT

from baps.errors import InputError
from baps.io.dicom.pixels import read_dataset
from baps.io.dicom.rtstruct import RTSTRUCT_CLASS
from baps.server.datastores.dicomweb.series import NON_IMAGE_MODALITIES, is_uid
from baps.site.pacs_studies import json_values

_SR, _PRESENTATION = "1.2.840.10008.5.1.4.1.1.88.", "1.2.840.10008.5.1.4.1.1.11."

_CLASSES: Mapping[str, str] = {
    "1.2.840.10008.5.1.4.1.1.66.4": "SEG",  # Segmentation
    "1.2.840.10008.5.1.4.1.1.66.7": "SEG",  # Label Map Segmentation
    RTSTRUCT_CLASS: "RTSTRUCT",
    **{f"{_SR}{number}": "SR" for number in (11, 22, 33, 34)},  # Basic Text, Enhanced, Comprehensive (3D)
    f"{_SR}59": "KO",  # Key Object Selection
    **{f"{_PRESENTATION}{number}": "PR" for number in (1, 2)},  # Grayscale and Color Softcopy Presentation State
}
"""SOP classes of the objects that viewers store, and the Modality of each."""

_STUDY_NAMES = frozenset(
    ("PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "ResponsiblePerson",
     "ReferringPhysicianName", "ConsultingPhysicianName", "PhysiciansOfRecord", "RequestingPhysician",
     "NameOfPhysiciansReadingStudy", "PerformingPhysicianName")
)  # fmt: skip
"""Person names of the patient and the study, which do not name the author of an object."""

_PERSON_CODES = (
    "OperatorIdentificationSequence",
    "ContentCreatorIdentificationCodeSequence",
    "VerifyingObserverIdentificationCodeSequence",
    "PersonIdentificationCodeSequence",
)
"""Coded identities of persons. They are removed, because the user who signed in is the only known author."""

_AUTHOR_KEYWORDS = {"SEG": "ContentCreatorName", "PR": "ContentCreatorName"}
"""Attribute with the author, by modality; for other modalities it is OperatorsName."""

_STUDY_DATE_PREFIXES = ("PatientBirth", "Study")
"""Prefixes of the dates of the patient and the study, which an object copies."""

_MAX_CLOCK_SKEW = timedelta(minutes=5)
"""Time by which clocks may differ."""

_PATIENT_KEYWORDS = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")


def read_object(content: bytes) -> FileDataset:
    """Read an object that is to be stored.

    Args:
        content: The object, as a file.

    Raises:
        InputError: if it is not DICOM, its data set is deflated, or viewers do not store objects of its class.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "object.dcm"
        file.write_bytes(content)
        try:
            transfer_syntax = pydicom.filereader.read_file_meta_info(file).get("TransferSyntaxUID")
            if transfer_syntax == DeflatedExplicitVRLittleEndian:  # It may inflate to any size when it is opened.
                raise InputError("The object is packed as a whole (Deflated). Export it in another transfer syntax.")
            dataset = read_dataset(file, pixels=True)
            for _ in dataset.iterall():  # Elements that cannot be read raise an error here.
                pass
        except InputError:
            raise
        except Exception as error:  # pydicom raises many kinds.
            raise InputError("An object is no DICOM that can be read. Nothing was stored; export it again.") from error
    sop_class, modality = str(dataset.get("SOPClassUID") or ""), str(dataset.get("Modality") or "")
    if sop_class not in _CLASSES:
        raise InputError(
            f"Objects of SOPClassUID {sop_class[:64]!r} are not stored through this server: segmentations, structure "
            "sets, reports, key objects and presentation states are."
        )
    if modality != _CLASSES[sop_class]:
        raise InputError(f"An object of its SOPClassUID has Modality {_CLASSES[sop_class]}, not {modality[:16]!r}.")
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        if not is_uid(str(dataset.get(keyword) or "")):
            raise InputError(f"An object has no usable {keyword}. Nothing was stored; export it again.")
    return dataset


def sign(label: FileDataset, user: str, confirms: bool, now: datetime) -> None:
    """Make the user who stores an object its author, and replace times in the future.

    Args:
        label: The object, which is changed.
        user: Name of the user, or "" if no login is needed; the names in the object stay then.
        confirms: Whether the user may approve labels.
        now: Current time, with a time zone.
    """
    if user:
        name = "".join(" " if letter in "\\=^" else letter for letter in user)[:64]
        setattr(label, _AUTHOR_KEYWORDS.get(str(label.Modality), "OperatorsName"), name)
        for dataset in _nested_datasets(label):
            for keyword in _PERSON_CODES:
                dataset.pop(keyword, None)
            for element in dataset:
                if element.VR == "PN" and element.keyword not in _STUDY_NAMES and element.value:
                    element.value = name
    if label.get("ApprovalStatus") and not confirms:
        label.ApprovalStatus = "UNAPPROVED"
        for keyword in ("ReviewDate", "ReviewTime", "ReviewerName"):
            label.pop(keyword, None)
    zone = str(label.get("TimezoneOffsetFromUTC") or "")
    for dataset in _nested_datasets(label):
        _replace_future_times(dataset, zone, now)
    label.file_meta.MediaStorageSOPClassUID = label.SOPClassUID
    label.file_meta.MediaStorageSOPInstanceUID = label.SOPInstanceUID


def _nested_datasets(dataset: Dataset) -> Iterator[Dataset]:
    """Yield a data set and all data sets that are nested in it."""
    yield dataset
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _nested_datasets(item)


def _replace_future_times(dataset: Dataset, zone: str, now: datetime) -> None:
    """Replace dates in the future, and dates that cannot be read, by the current time."""
    for element in list(dataset):
        keyword, value = element.keyword, str(element.value or "")
        if element.VR not in ("DA", "DT") or not value or keyword.startswith(_STUDY_DATE_PREFIXES):
            continue
        time_keyword = f"{keyword.removesuffix('Date')}Time" if element.VR == "DA" else ""
        text = value + (str(dataset.get(time_keyword) or "") if time_keyword else "")
        try:
            when = DT(text if element.VR == "DT" and text[-5:-4] in "+-" else text + zone)
            when = when.astimezone(now.tzinfo)
        except (ValueError, OverflowError, TypeError):
            when = datetime.max.replace(tzinfo=now.tzinfo)
        if when <= now + _MAX_CLOCK_SKEW:
            continue
        local = now.astimezone(datetime.strptime(zone, "%z").tzinfo) if _is_zone(zone) else now
        if element.VR == "DT":
            element.value = local.strftime("%Y%m%d%H%M%S.%f%z")
            continue
        element.value = local.strftime("%Y%m%d")
        if time_keyword in dataset:
            dataset[time_keyword].value = local.strftime("%H%M%S.%f")


def _is_zone(zone: str) -> bool:
    return len(zone) == 5 and zone[0] in "+-" and zone[1:].isdecimal() and int(zone[1:3]) < 15 and int(zone[3:]) < 60


def check_belongs(label: Dataset, study: Mapping[str, Any], series: Collection[str], images: Collection[str]) -> None:
    """Refuse an object with another patient than its study, or with references outside the served images.

    Args:
        label: The object.
        study: Its study in the PACS, as DICOM JSON.
        series: SeriesInstanceUIDs of the study to which it may refer.
        images: SeriesInstanceUIDs of the study's images that are served.

    Raises:
        InputError: if the object does not belong to its study, or is a label that refers to no image.
    """
    for keyword in _PATIENT_KEYWORDS:
        study_value = (json_values(study, keyword) or [""])[0]
        label_value = str(label.get(keyword) or "").partition("=")[0]
        is_given = bool(study_value) and (bool(label_value) or keyword == "PatientID")
        if is_given and _normalize(label_value) != _normalize(study_value):
            raise InputError(f"The object has another {keyword} than its study. Nothing was stored.")
    references = {
        str(item.SeriesInstanceUID)
        for item in _nested_datasets(label)
        if item is not label and "SeriesInstanceUID" in item
    }
    references -= {str(label.SeriesInstanceUID)}
    is_label = label.Modality in ("SEG", "RTSTRUCT")
    if not references <= {*series, *images} or (is_label and references.isdisjoint(images)):
        raise InputError(
            "The object refers to a series that is not served here, or to none (SeriesInstanceUID of its references). "
            "Nothing was stored."
        )


def _normalize(value: str) -> str:
    """Return a value without case, separators and padding, in which programs differ."""
    return " ".join(value.rstrip("^ ").casefold().replace("^", " ").split())


def check_new_series(label: Dataset, study: list[str], modality: list[str]) -> None:
    """Refuse an object whose series exists in another study, or holds images or objects of another modality.

    Args:
        label: The object.
        study: StudyInstanceUID of the existing series.
        modality: Modality of the existing series.

    Raises:
        InputError: if the object cannot be added to the series.
    """
    is_same = study == [label.StudyInstanceUID] and modality == [label.Modality]
    if not is_same or label.Modality not in NON_IMAGE_MODALITIES:
        raise InputError("There is a series of this SeriesInstanceUID already, of other objects. Nothing was stored.")


def to_bytes(label: FileDataset) -> bytes:
    """Return an object as a file.

    Args:
        label: The object.

    Raises:
        InputError: if it cannot be written.
    """
    content = io.BytesIO()
    try:
        label.save_as(content, write_like_original=False)
    except Exception as error:  # pydicom raises many kinds.
        raise InputError("An object holds values that DICOM cannot store. Nothing was stored.") from error
    return content.getvalue()
