"""Labels in a PACS: DICOM SEG objects, which are added and never changed."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.valuerep import DT

from baps.errors import InputError
from baps.formats import write_nifti
from baps.formats.dicom_seg import read_segmentation, segments_said
from baps.volume import Volume
from lib.pacs.series import is_uid

_LONG_AGO = datetime(1900, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class StoredSegment:
    """What a SEG object of the PACS holds under one label, by the object's header.

    Attributes:
        study, series, instance: UIDs of the object.
        images: SeriesInstanceUIDs that it refers to.
        when: the object was made; a time without a zone is taken for this server's own.
        name: the label.
        confirmed: whether a person drew or corrected it.
    """

    study: str
    series: str
    instance: str
    images: tuple[str, ...]
    when: datetime
    name: str
    confirmed: bool


@dataclass(frozen=True)
class OrganLabel:
    """Where an organ is in an image.

    Attributes:
        file: of the mask, 1 inside.
        slices: across K, on which the organ was looked for.
        passed_over: why newer ones cannot be used.
    """

    file: Path
    slices: frozenset[int]
    passed_over: tuple[str, ...] = ()


def stored_segments(header: Dataset) -> list[StoredSegment]:
    """What a header says; nothing if it is of no SEG, or does not say what it belongs to."""
    study, series, instance = (
        str(header.get(name, "")) for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    )
    belongs = tuple(str(one.get("SeriesInstanceUID", "")) for one in header.get("ReferencedSeriesSequence") or [])
    if not belongs or not all(map(is_uid, (study, series, instance))):  # Folders are named after them.
        return []
    confirmed: dict[str, bool] = {}
    for name, by_person in segments_said(header).values():
        confirmed[name] = confirmed.get(name, False) or by_person
    when = _made(header)
    return [
        StoredSegment(study, series, instance, belongs, when, name, by_person)
        for name, by_person in confirmed.items()
        if name
    ]


def _made(header: Dataset) -> datetime:
    """When an object was made; long ago where it does not say, or says that it is yet to be."""
    zone, latest = str(header.get("TimezoneOffsetFromUTC") or ""), datetime.now(timezone.utc) + timedelta(days=1)
    for kind in ("Content", "Series"):
        date, time = (str(header.get(f"{kind}{part}") or "") for part in ("Date", "Time"))
        try:
            if date and time and (made := DT(date + time + zone).astimezone(timezone.utc)) < latest:
                return made
        except (ValueError, OverflowError):
            continue
    return _LONG_AGO


def keep_segments(folder: Path, dataset: Dataset, image: Volume, depths: NDArray[np.float64]) -> None:
    """Keep the masks of a SEG as files in a folder, which is there when all of them are.

    Raises:
        InputError: as ``read_segmentation``.
        OSError: if it cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    parts = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    kept: dict[str, tuple[str, list[int]]] = {}
    try:
        for number, segment in enumerate(read_segmentation(dataset, image, depths)):
            kept[segment.name] = f"{number}.nii.gz", sorted(segment.slices)
            write_nifti(parts / f"{number}.nii.gz", Volume(segment.mask.astype(np.uint8), image.affine))
        (parts / "segments.json").write_text(json.dumps(kept))
        parts.rename(folder)
    except BaseException:
        shutil.rmtree(parts, ignore_errors=True)
        if not folder.exists():  # Else another process was faster, with the same.
            raise


def kept_segment(folder: Path, name: str) -> OrganLabel:
    """One of them.

    Raises:
        InputError: if the SEG names the label and has no frame of it.
    """
    kept = json.loads((folder / "segments.json").read_text())
    if name not in kept:
        raise InputError(f"{name} is empty in the newest DICOM segmentation. Segment it and export it again.")
    file, slices = kept[name]
    return OrganLabel(folder / file, frozenset(slices))
