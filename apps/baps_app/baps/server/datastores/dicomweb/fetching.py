"""What is fetched from a PACS: the objects of a series, their headers, single objects."""

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

_STORING_SECONDS = (0.2, 0.5, 1.0)
"""That are waited for an object that was stored just now: not every PACS has it at once."""


def fetch_series(client: DICOMwebClient, series: Series, folder: Path) -> None:
    """Fetch a series into a folder, a file for each object, named as viewers and our sentences name it.

    Raises:
        InputError: if it is a whole slide, which is no volume.
        BapsError: if the PACS does not answer.
        OSError: if the disk is full.
    """
    with convert_pacs_errors():
        for number, image in enumerate(client.iter_series(series.study, series.uid)):
            if image.get("SOPClassUID") == VLWholeSlideMicroscopyImageStorage:
                raise not_a_volume("a whole-slide image")
            name = f"image {image.get('InstanceNumber', '')}.dcm"
            name = f"{number} {name}" if (folder / name).exists() else name
            write_dataset(folder / name, image)


def not_a_volume(what: str) -> InputError:
    """Make the sentence for a series of something else than images that make a volume."""
    return InputError(f"The series is {what}, which is no volume to segment. Choose another series.")


def fetch_headers(client: DICOMwebClient, study: str, series: str, patient: str | None = None) -> list[Dataset]:
    """Fetch the headers of all objects of a series, without pixels.

    They come as the PACS's metadata; where that fails, or does not say whose images they are as the objects do, from
    the objects.

    Args:
        client: of the PACS.
        study, series: its UIDs.
        patient: the PatientID that the objects have, or None where it is not known.

    Raises:
        BapsError: if the PACS does not answer.
    """
    try:
        with convert_pacs_errors():
            headers = [read_json_header(one) for one in client.retrieve_series_metadata(study, series)]
        if headers and all(_is_whose(header, study, patient) for header in headers):
            return headers
    except BapsError as error:
        if status_code(error) is None and not isinstance(error.__cause__, ValueError):
            raise
    with convert_pacs_errors():
        return list(_without_pixels(client.iter_series(study, series)))


def _is_whose(header: Dataset, study: str, patient: str | None) -> bool:
    told = [str(header.get(keyword) or "") for keyword in IDENTITY_KEYWORDS]
    same = patient is None or str(header.get("PatientID") or "").strip() == patient
    return (
        same and header.get("StudyInstanceUID") == study and not any("\N{REPLACEMENT CHARACTER}" in one for one in told)
    )


def _without_pixels(images: Iterator[Dataset]) -> Iterator[Dataset]:
    for image in images:
        for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
            image.pop(keyword, None)
        yield image


def fetch_object(client: DICOMwebClient, study: str, series: str, instance: str, stored_now: bool = False) -> Dataset:
    """Fetch one object, compressed as it is.

    Args:
        client: of the PACS.
        study, series, instance: its UIDs.
        stored_now: whether it was stored a moment ago, so that the PACS may not have it yet.

    Raises:
        BapsError: if the PACS does not answer, or has no such object.
    """
    for wait in (*(_STORING_SECONDS if stored_now else ()), None):
        try:
            with convert_pacs_errors():
                return client.retrieve_instance(study, series, instance)
        except BapsError as error:
            if wait is None or status_code(error) not in (404, 503):
                raise
            time.sleep(wait)
    raise AssertionError
