"""Fetch objects from a PACS: a whole series, the headers of a series, or one object."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset
from pydicom.uid import VLWholeSlideMicroscopyImageStorage

from baps.errors import BapsError, InputError
from baps.io.dicom.header import IDENTITY_KEYWORDS, read_json_header
from baps.io.dicom.pixels import write_dataset
from baps.server.datastores.dicomweb.client import convert_pacs_errors, status_code
from baps.server.datastores.dicomweb.series import Series

_RETRY_SECONDS = (0.2, 0.5, 1.0)
"""Delays before an object that was just stored is requested again: not every PACS serves it at once."""


def fetch_series(client: DICOMwebClient, series: Series, folder: Path) -> None:
    """Fetch a series into a folder, with one file per object. Messages name the files, as viewers name the images.

    Args:
        client: Client of the PACS.
        series: The series.
        folder: Existing folder.

    Raises:
        InputError: if it is a whole-slide image, which is not a volume.
        BapsError: if the PACS does not respond.
        OSError: if the disk is full.
    """
    with convert_pacs_errors():
        for number, image in enumerate(client.iter_series(series.study, series.uid)):
            if image.get("SOPClassUID") == VLWholeSlideMicroscopyImageStorage:
                raise not_a_volume("a whole-slide image")
            name = f"image {image.get('InstanceNumber', '')}.dcm"
            name = f"{number} {name}" if (folder / name).exists() else name
            write_dataset(folder / name, image)


def not_a_volume(content: str) -> InputError:
    """Return the error for a series that does not hold the images of a volume.

    Args:
        content: What the series is, as a phrase for the message.
    """
    return InputError(f"The series is {content}, which is no volume to segment. Choose another series.")


def fetch_headers(client: DICOMwebClient, study: str, series: str, patient: str | None = None) -> list[Dataset]:
    """Fetch the headers of all objects of a series, without pixels.

    They come from the metadata of the PACS. If the PACS sends none, or they differ from the objects in the patient or
    the study, the objects are fetched.

    Args:
        client: Client of the PACS.
        study: StudyInstanceUID.
        series: SeriesInstanceUID.
        patient: PatientID of the objects, or None if it is not known.

    Raises:
        BapsError: if the PACS does not respond.
    """
    try:
        with convert_pacs_errors():
            headers = [read_json_header(metadata) for metadata in client.retrieve_series_metadata(study, series)]
        if headers and all(_has_identity(header, study, patient) for header in headers):
            return headers
    except BapsError as error:
        if status_code(error) is None and not isinstance(error.__cause__, ValueError):
            raise
    with convert_pacs_errors():
        return list(_without_pixels(client.iter_series(study, series)))


def _has_identity(header: Dataset, study: str, patient: str | None) -> bool:
    """Return whether a header has the right study and patient, and its names were decoded correctly."""
    names = [str(header.get(keyword) or "") for keyword in IDENTITY_KEYWORDS]
    same_patient = patient is None or str(header.get("PatientID") or "").strip() == patient
    is_decoded = not any("\N{REPLACEMENT CHARACTER}" in name for name in names)
    return same_patient and header.get("StudyInstanceUID") == study and is_decoded


def _without_pixels(images: Iterator[Dataset]) -> Iterator[Dataset]:
    for image in images:
        for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
            image.pop(keyword, None)
        yield image


def fetch_object(client: DICOMwebClient, study: str, series: str, instance: str, just_stored: bool = False) -> Dataset:
    """Fetch one object, in the transfer syntax in which it is stored.

    Args:
        client: Client of the PACS.
        study: StudyInstanceUID.
        series: SeriesInstanceUID.
        instance: SOPInstanceUID.
        just_stored: Whether it was stored a moment ago, so that the PACS may not serve it yet.

    Raises:
        BapsError: if the PACS does not respond, or has no such object.
    """
    for delay in (*(_RETRY_SECONDS if just_stored else ()), None):
        try:
            with convert_pacs_errors():
                return client.retrieve_instance(study, series, instance)
        except BapsError as error:
            if delay is None or status_code(error) not in (404, 503):
                raise
            time.sleep(delay)
    raise AssertionError
