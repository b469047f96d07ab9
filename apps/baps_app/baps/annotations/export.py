"""Export saved labels of a folder of studies for other programs: as an RTSTRUCT, for radiotherapy."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from pydicom.dataset import FileDataset

from baps.annotations.history import LabelHistory
from baps.errors import InputError
from baps.io import read_dicom, read_label_map, read_volume
from baps.io.dicom.labels import read_series_headers
from baps.io.dicom.rtstruct import write_structures


def label_to_rtstruct(
    history: LabelHistory,
    image: str,
    tag: str = "final",
    source: Path | None = None,
    number: int | None = None,
    notes: list[str] | None = None,
) -> FileDataset:
    """Convert the label of a DICOM series to an RTSTRUCT, with a structure for each segment that is marked.

    Args:
        history: labels of the folder of studies.
        image: name of the series.
        tag: tag of the label.
        source: the DICOM series or file that the image was read from; by default the one of its name.
        number: number of the volume in the source, from 1, if the source has several.
        notes: gets sentences on how the label was read.

    Returns:
        The DICOM object, in the study of the series.

    Raises:
        NotFoundError: if there is no such image or label.
        InputError: if the image is not a DICOM series, the label cannot be read or is empty, or the header of the
            series lacks what an RTSTRUCT needs.
    """
    file, info = history.served(image, tag)
    source = source or history.image_file(image)
    headers = read_series_headers(source)
    if not headers:
        raise InputError(f"The image {image} is no DICOM series, which an RTSTRUCT refers to. Give one that is.")
    volume = read_volume(source) if number is None else read_dicom(source, number)
    labels = read_label_map(file, volume, source)
    if notes is not None:
        notes += labels.notes
    names = {segment["idx"]: segment["name"] for segment in info.get("label_info") or []} or labels.names
    masks = {names.get(value, f"label {value}"): labels.mask(value) for value in labels.values()}
    if not masks:
        raise InputError(f"The label {tag} of {image} marks nothing. Segment the organ first.")
    author, by_model = str(info.get("author") or ""), bool(info.get("model"))
    return write_structures(headers, volume, masks, datetime.now(timezone.utc), author, by_model, number)
