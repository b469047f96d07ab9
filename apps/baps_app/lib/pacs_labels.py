"""Labels in a PACS: DICOM SEG objects, which are added and never changed."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pydicom.valuerep import DT

from baps.errors import InputError
from baps.formats import write_nifti
from baps.formats.dicom_seg import read_segmentation, segments_said
from baps.volume import Volume

_LONG_AGO = datetime(1900, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class StoredSegment:
    """A segment of a SEG object of the PACS, by the object's header.

    Attributes:
        study, series, instance: UIDs of the object.
        image: SeriesInstanceUID of the image that it belongs to.
        when: the object was made; a time without a zone is taken for this server's own.
        number, name: of the segment.
        confirmed: whether a person drew or corrected it.
    """

    study: str
    series: str
    instance: str
    image: str
    when: datetime
    number: int
    name: str
    confirmed: bool


@dataclass(frozen=True)
class OrganLabel:
    """Where an organ is in an image.

    Attributes:
        file: of the mask, 1 inside.
        slices: across K, on which the organ was looked for.
    """

    file: Path
    slices: frozenset[int]


def stored_segments(header: Dataset) -> list[StoredSegment]:
    """What a header says; nothing if it is of no SEG, or does not say what it belongs to."""
    study, series, instance = (
        str(header.get(name, "")) for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    )
    belongs = header.get("ReferencedSeriesSequence") or []
    if not belongs or not all(UID(uid).is_valid for uid in (study, series, instance)):  # Folders are named after them.
        return []
    image, when = str(belongs[0].get("SeriesInstanceUID", "")), _made(header)
    return [
        StoredSegment(study, series, instance, image, when, number, name, confirmed)
        for number, (name, confirmed) in segments_said(header).items()
        if name
    ]


def _made(header: Dataset) -> datetime:
    zone = str(header.get("TimezoneOffsetFromUTC") or "")
    for kind in ("Content", "Series"):
        date, time = (str(header.get(f"{kind}{part}") or "") for part in ("Date", "Time"))
        try:
            if date and time:
                return DT(date + time + zone).astimezone(timezone.utc)
        except (ValueError, OverflowError):
            continue
    return _LONG_AGO


def keep_segments(folder: Path, dataset: Dataset, image: Volume) -> None:
    """Keep the masks of a SEG as files in a folder, which is there when all of them are.

    Raises:
        InputError: as ``read_segmentation``.
        OSError: if it cannot be written.
    """
    segments = read_segmentation(dataset, image)
    folder.parent.mkdir(parents=True, exist_ok=True)
    parts = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        for number, segment in segments.items():
            write_nifti(parts / f"{number}.nii.gz", Volume(segment.mask.astype(np.uint8), image.affine))
        slices = {str(number): sorted(segment.slices) for number, segment in segments.items()}
        (parts / "slices.json").write_text(json.dumps(slices))
        parts.rename(folder)
    except BaseException:
        shutil.rmtree(parts, ignore_errors=True)
        if not folder.exists():  # Else another process was faster, with the same.
            raise


def kept_segment(folder: Path, segment: StoredSegment) -> OrganLabel:
    """One of them.

    Raises:
        InputError: if the SEG names the segment and has no frame of it.
    """
    slices = json.loads((folder / "slices.json").read_text()).get(str(segment.number))
    if slices is None:
        raise InputError(f"{segment.name} is empty in the newest DICOM segmentation. Segment it and export it again.")
    return OrganLabel(folder / f"{segment.number}.nii.gz", frozenset(slices))
