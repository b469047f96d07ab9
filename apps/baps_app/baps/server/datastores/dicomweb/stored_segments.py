"""Labels in a PACS: DICOM segmentations and structure sets (RTSTRUCT), which are added and never changed."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.valuerep import DT

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io import write_nifti
from baps.io.dicom.rtstruct import (
    RTSTRUCT_CLASS,
    describe_structures,
    read_structures,
    structure_references,
    structure_series,
)
from baps.io.dicom.seg import Segment, describe_segments, read_segmentation, source_frames, source_references
from baps.server.datastores.dicomweb.disputed import author_of, disputed_organs
from baps.server.datastores.dicomweb.series import is_uid

MODALITIES = ("SEG", "RTSTRUCT")
"""Of the objects that are labels: segmentations, label maps among them, and structure sets."""

_LONG_AGO = datetime(1900, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class StoredSegment:
    """What an object of the PACS holds under one label, by the object's header.

    Attributes:
        study, series, instance: UIDs of the object.
        images: SeriesInstanceUIDs that it refers to.
        when: the object was made; a time without a zone is taken for this server's own.
        name: the label.
        confirmed: whether a person drew or corrected it, and it is not disputed, see ``disputed``.
        author: who made the object, or "".
    """

    study: str
    series: str
    instance: str
    images: tuple[str, ...]
    when: datetime
    name: str
    confirmed: bool
    author: str = ""


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
    newer_errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Slices:
    """Where the slices of an image lie.

    Attributes:
        depths: along the normal, in the order of K, see ``slice_depths``.
        frames: for each slice the (4, 4) of ``source_frames``.
        frame_of_reference: FrameOfReferenceUID, or "" where the headers name none, or several.
    """

    depths: NDArray[np.float64]
    frames: tuple[NDArray[np.float64], ...]
    frame_of_reference: str

    @classmethod
    def of(cls, headers: Sequence[Dataset], image: Volume, number: int | None) -> Slices:
        """Find them; arguments and errors are those of ``source_frames``."""
        found = source_frames(headers, image, number)
        frames = tuple(found[k][2] for k in range(image.shape[2]))
        named = {str(header.get("FrameOfReferenceUID") or "") for header, _, _ in found.values()}
        depths = np.array([image.slice_normal @ frame[:3, 3] for frame in frames])
        return cls(depths, frames, named.pop() if len(named) == 1 else "")


def is_structure_set(header: Dataset) -> bool:
    """Return whether a header is that of a structure set."""
    return bool(header.get("SOPClassUID") == RTSTRUCT_CLASS)


def label_references(label: Dataset) -> set[tuple[str, int]]:
    """Read which images a label was drawn on, see ``source_references``."""
    return structure_references(label) if is_structure_set(label) else source_references(label)


def read_label(
    label: Dataset,
    image: Volume,
    slices: Slices,
    unreadable: dict[str, str] | None = None,
    notes: list[str] | None = None,
) -> Iterator[Segment]:
    """Read the segments of a label object, label by label.

    Args:
        label: the object; it is changed by reading.
        image: the volume that it belongs to.
        slices: of the image.
        unreadable: see ``read_structures``; of a SEG all segments can be read or none.
        notes: see ``read_structures``.

    Raises:
        InputError: as ``read_segmentation`` and ``read_structures``.
    """
    if is_structure_set(label):
        return read_structures(label, image, slices.depths, slices.frames, slices.frame_of_reference, unreadable, notes)
    return read_segmentation(label, image, slices.depths)


def labelled_series(header: Dataset) -> tuple[str, ...]:
    """Read the SeriesInstanceUIDs of the images that a label object was drawn on; none of another object."""
    if is_structure_set(header):
        return structure_series(header)
    return tuple(str(one.get("SeriesInstanceUID", "")) for one in header.get("ReferencedSeriesSequence") or [])


def stored_segments(header: Dataset) -> list[StoredSegment]:
    """Read what the header of a label object says; nothing if it is of none, or says not what it belongs to."""
    study, series, instance = (
        str(header.get(name, "")) for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    )
    belongs = labelled_series(header)
    said = describe_structures(header) if is_structure_set(header) else describe_segments(header)
    if not belongs or not all(map(is_uid, (study, series, instance))):  # Folders are named after them.
        return []
    confirmed: dict[str, bool] = {}
    for name, by_person in said.values():
        confirmed[name] = confirmed.get(name, False) or by_person
    when, disputed, author = _made(header), disputed_organs(header), author_of(header)
    return [
        StoredSegment(study, series, instance, belongs, when, name, by_person and name not in disputed, author)
        for name, by_person in confirmed.items()
        if name
    ]


def _made(header: Dataset) -> datetime:
    """When an object was made; long ago where it does not say, or says that it is yet to be."""
    zone, latest = str(header.get("TimezoneOffsetFromUTC") or ""), datetime.now(timezone.utc) + timedelta(days=1)
    for kind in ("StructureSet", "Content", "Series"):
        date, time = (str(header.get(f"{kind}{part}") or "") for part in ("Date", "Time"))
        try:
            if date and time and (made := DT(date + time + zone).astimezone(timezone.utc)) < latest:
                return made
        except (ValueError, OverflowError):
            continue
    return _LONG_AGO


def write_segments(
    folder: Path, dataset: Dataset, image: Volume, slices: Slices, notes: list[str] | None = None
) -> None:
    """Keep the masks of a label object as files in a folder, which is there when all of them are.

    Of a structure that cannot be read the reason is kept.

    Raises:
        InputError: as ``read_label``.
        OSError: if it cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    parts = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    kept: dict[str, tuple[str, list[int]]] = {}
    unreadable: dict[str, str] = {}
    try:
        for number, segment in enumerate(read_label(dataset, image, slices, unreadable, notes)):
            kept[segment.name] = f"{number}.nii.gz", sorted(segment.slices)
            write_nifti(parts / f"{number}.nii.gz", Volume(segment.mask.astype(np.uint8), image.affine))
        (parts / "unreadable.json").write_text(json.dumps(unreadable))
        (parts / "segments.json").write_text(json.dumps(kept))
        parts.rename(folder)
    except BaseException:
        shutil.rmtree(parts, ignore_errors=True)
        if not folder.exists():  # Else another process was faster, with the same.
            raise


def read_segment(folder: Path, name: str) -> OrganLabel:
    """One of them.

    Raises:
        InputError: if the structure cannot be read, or the SEG names the label and has no frame of it.
    """
    kept = json.loads((folder / "segments.json").read_text())
    if name not in kept:
        reasons = folder / "unreadable.json"
        if reasons.exists() and (reason := json.loads(reasons.read_text()).get(name)):
            raise InputError(reason)
        raise InputError(f"{name} is empty in the newest DICOM segmentation. Segment it and export it again.")
    file, slices = kept[name]
    return OrganLabel(folder / file, frozenset(slices))
