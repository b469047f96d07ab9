"""What a viewer stores in the PACS is looked into first: it says who made it and when, and belongs where it goes."""

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
"""What viewers store, and its Modality."""

_OF_THE_STUDY = frozenset(
    ("PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "ResponsiblePerson",
     "ReferringPhysicianName", "ConsultingPhysicianName", "PhysiciansOfRecord", "RequestingPhysician",
     "NameOfPhysiciansReadingStudy", "PerformingPhysicianName")
)  # fmt: skip
"""Names that do not say who made an object."""

_PERSONS = (
    "OperatorIdentificationSequence",
    "ContentCreatorIdentificationCodeSequence",
    "VerifyingObserverIdentificationCodeSequence",
    "PersonIdentificationCodeSequence",
)
"""Codes of persons, who are named by who signed in alone."""

_SIGNED = {"SEG": "ContentCreatorName", "PR": "ContentCreatorName"}
"""Where an object says who made it; others say it as OperatorsName."""

_NOT_OF_THE_OBJECT = ("PatientBirth", "Study")
"""What dates begin with that the object takes over."""

_SKEW = timedelta(minutes=5)
"""By which clocks may differ."""

_SAME = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")


def read_object(content: bytes) -> FileDataset:
    """Read an object that is to be stored.

    Raises:
        InputError: if it is no DICOM, packed as a whole, or of a class that no viewer stores.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "object.dcm"
        file.write_bytes(content)
        try:
            packed = pydicom.filereader.read_file_meta_info(file).get("TransferSyntaxUID")
            if packed == DeflatedExplicitVRLittleEndian:  # It unpacks to any size when it is opened.
                raise InputError("The object is packed as a whole (Deflated). Export it in another transfer syntax.")
            found = read_dataset(file, pixels=True)
            for _ in found.iterall():  # What cannot be read at all is told here.
                pass
        except InputError:
            raise
        except Exception as error:  # pydicom raises many kinds.
            raise InputError("An object is no DICOM that can be read. Nothing was stored; export it again.") from error
    kind, modality = str(found.get("SOPClassUID") or ""), str(found.get("Modality") or "")
    if kind not in _CLASSES:
        raise InputError(
            f"Objects of SOPClassUID {kind[:64]!r} are not stored through this server: segmentations, structure sets, "
            "reports, key objects and presentation states are."
        )
    if modality != _CLASSES[kind]:
        raise InputError(f"An object of its SOPClassUID has Modality {_CLASSES[kind]}, not {modality[:16]!r}.")
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        if not is_uid(str(found.get(keyword) or "")):
            raise InputError(f"An object has no usable {keyword}. Nothing was stored; export it again.")
    return found


def sign(label: FileDataset, user: str, confirms: bool, now: datetime) -> None:
    """Have an object name who stores it as who made it, and no time that is yet to come.

    Args:
        label: the object, which is changed.
        user: who stores it; "" where nobody has to sign in: then the names stay.
        confirms: whether their approval counts.
        now: the time, with a time zone.
    """
    if user:
        name = "".join(" " if letter in "\\=^" else letter for letter in user)[:64]
        setattr(label, _SIGNED.get(str(label.Modality), "OperatorsName"), name)
        for part in _parts(label):
            for keyword in _PERSONS:
                part.pop(keyword, None)
            for element in part:
                if element.VR == "PN" and element.keyword not in _OF_THE_STUDY and element.value:
                    element.value = name
    if label.get("ApprovalStatus") and not confirms:
        label.ApprovalStatus = "UNAPPROVED"
        for keyword in ("ReviewDate", "ReviewTime", "ReviewerName"):
            label.pop(keyword, None)
    zone = str(label.get("TimezoneOffsetFromUTC") or "")
    for part in _parts(label):
        _no_future(part, zone, now)
    label.file_meta.MediaStorageSOPClassUID = label.SOPClassUID
    label.file_meta.MediaStorageSOPInstanceUID = label.SOPInstanceUID


def _parts(dataset: Dataset) -> Iterator[Dataset]:
    """A data set and all that are nested in it."""
    yield dataset
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _parts(item)


def _no_future(part: Dataset, zone: str, now: datetime) -> None:
    """Replace dates that are yet to come, or that nobody can read, by now."""
    for element in list(part):
        keyword, value = element.keyword, str(element.value or "")
        if element.VR not in ("DA", "DT") or not value or keyword.startswith(_NOT_OF_THE_OBJECT):
            continue
        other = f"{keyword.removesuffix('Date')}Time" if element.VR == "DA" else ""
        said = value + (str(part.get(other) or "") if other else "")
        try:
            made = DT(said if element.VR == "DT" and said[-5:-4] in "+-" else said + zone)
            made = made.astimezone(now.tzinfo)
        except (ValueError, OverflowError, TypeError):
            made = datetime.max.replace(tzinfo=now.tzinfo)
        if made <= now + _SKEW:
            continue
        local = now.astimezone(datetime.strptime(zone, "%z").tzinfo) if _is_zone(zone) else now
        if element.VR == "DT":
            element.value = local.strftime("%Y%m%d%H%M%S.%f%z")
            continue
        element.value = local.strftime("%Y%m%d")
        if other in part:
            part[other].value = local.strftime("%H%M%S.%f")


def _is_zone(zone: str) -> bool:
    return len(zone) == 5 and zone[0] in "+-" and zone[1:].isdecimal() and int(zone[1:3]) < 15 and int(zone[3:]) < 60


def check_belongs(label: Dataset, study: Mapping[str, Any], series: Collection[str], images: Collection[str]) -> None:
    """Refuse an object that says it is of another patient than its study, or refers to what is not served there.

    Args:
        label: the object.
        study: what the PACS answers of its study.
        series: all series of the study.
        images: those that are served.

    Raises:
        InputError: if it does, or refers to no image at all and is a label.
    """
    for keyword in _SAME:
        told = (json_values(study, keyword) or [""])[0]
        said = str(label.get(keyword) or "").partition("=")[0]
        if told and (said or keyword == "PatientID") and _plain(said) != _plain(told):
            raise InputError(f"The object has another {keyword} than its study. Nothing was stored.")
    referred = {
        str(part.SeriesInstanceUID) for part in _parts(label) if part is not label and "SeriesInstanceUID" in part
    }
    referred -= {str(label.SeriesInstanceUID)}
    if not referred <= {*series, *images} or (label.Modality in ("SEG", "RTSTRUCT") and referred.isdisjoint(images)):
        raise InputError(
            "The object refers to a series that is not served here, or to none (SeriesInstanceUID of its references). "
            "Nothing was stored."
        )


def _plain(name: str) -> str:
    """A value without what programs write differently."""
    return " ".join(name.rstrip("^ ").casefold().replace("^", " ").split())


def check_new_series(label: Dataset, study: list[str], modality: list[str]) -> None:
    """Refuse an object that would become part of a series of something else.

    Args:
        label: the object.
        study, modality: StudyInstanceUID and Modality of the series of its SeriesInstanceUID that the PACS has.

    Raises:
        InputError: if it would.
    """
    if study != [label.StudyInstanceUID] or modality != [label.Modality] or label.Modality not in NON_IMAGE_MODALITIES:
        raise InputError("There is a series of this SeriesInstanceUID already, of other objects. Nothing was stored.")


def written(label: FileDataset) -> bytes:
    """Return an object as a file.

    Raises:
        InputError: if it cannot be written.
    """
    content = io.BytesIO()
    try:
        label.save_as(content, write_like_original=False)
    except Exception as error:  # pydicom raises many kinds.
        raise InputError("An object holds values that DICOM has no room for. Nothing was stored.") from error
    return content.getvalue()
