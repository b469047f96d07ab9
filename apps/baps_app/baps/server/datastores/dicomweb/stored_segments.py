"""Labels in a PACS: DICOM segmentations and structure sets (RTSTRUCT). Objects are added and never changed."""

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
"""Modalities of label objects: segmentations, including label maps, and structure sets."""

_LONG_AGO = datetime(1900, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class StoredSegment:
    """One label of a label object in the PACS, as the object's header describes it.

    Attributes:
        study: StudyInstanceUID of the object.
        series: SeriesInstanceUID of the object.
        instance: SOPInstanceUID of the object.
        images: SeriesInstanceUIDs of the images that it refers to.
        when: Time at which the object was created. A time without a zone is in this server's zone.
        name: Name of the label.
        confirmed: Whether a person drew or corrected it, and it is not disputed.
        author: Author of the object, or "".
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
    """The label of one organ of an image.

    Attributes:
        file: NIfTI file of the mask, 1 inside.
        slices: Slices across K on which the organ was annotated.
        newer_errors: For each newer label that cannot be used, the reason.
    """

    file: Path
    slices: frozenset[int]
    newer_errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class SlicePositions:
    """The positions of the slices of an image.

    Attributes:
        depths: Positions along the normal in mm, in the order of K, see ``slice_depths``.
        frames: For each slice, the (4, 4) matrix of ``source_frames``.
        frame_of_reference: FrameOfReferenceUID, or "" if the headers have none, or several.
    """

    depths: NDArray[np.float64]
    frames: tuple[NDArray[np.float64], ...]
    frame_of_reference: str

    @classmethod
    def from_headers(cls, headers: Sequence[Dataset], image: Volume, number: int | None) -> SlicePositions:
        """Read the positions from the headers of a series.

        Args:
            headers: Headers of all objects of the series.
            image: The volume.
            number: Number of the volume in the series, from 1, or None if it holds one.

        Raises:
            InputError: as ``source_frames``.
        """
        sources = source_frames(headers, image, number)
        frames = tuple(sources[k][2] for k in range(image.shape[2]))
        references = {str(header.get("FrameOfReferenceUID") or "") for header, _, _ in sources.values()}
        depths = np.array([image.slice_normal @ frame[:3, 3] for frame in frames])
        return cls(depths, frames, references.pop() if len(references) == 1 else "")


def is_structure_set(header: Dataset) -> bool:
    """Return whether a header is that of a structure set.

    Args:
        header: Header of an object.
    """
    return bool(header.get("SOPClassUID") == RTSTRUCT_CLASS)


def label_references(label: Dataset) -> set[tuple[str, int]]:
    """Return the images that a label object refers to, see ``source_references``.

    Args:
        label: Label object.
    """
    return structure_references(label) if is_structure_set(label) else source_references(label)


def read_label(
    label: Dataset,
    image: Volume,
    positions: SlicePositions,
    unreadable: dict[str, str] | None = None,
    notes: list[str] | None = None,
) -> Iterator[Segment]:
    """Read the segments of a label object, one by one.

    Args:
        label: Label object; reading changes it.
        image: Volume of the label.
        positions: Positions of the image's slices.
        unreadable: See ``read_structures``. A SEG is readable as a whole or not at all.
        notes: See ``read_structures``.

    Raises:
        InputError: as ``read_segmentation`` and ``read_structures``.
    """
    if is_structure_set(label):
        return read_structures(
            label, image, positions.depths, positions.frames, positions.frame_of_reference, unreadable, notes
        )
    return read_segmentation(label, image, positions.depths)


def labelled_series(header: Dataset) -> tuple[str, ...]:
    """Return the SeriesInstanceUIDs of the images that a label object refers to; none for other objects.

    Args:
        header: Header of an object.
    """
    if is_structure_set(header):
        return structure_series(header)
    return tuple(str(item.get("SeriesInstanceUID", "")) for item in header.get("ReferencedSeriesSequence") or [])


def stored_segments(header: Dataset) -> list[StoredSegment]:
    """Return the labels that a header describes.

    Args:
        header: Header of an object.

    Returns:
        The labels; none if it is not a label object, or refers to no series.
    """
    study, series, instance = (
        str(header.get(keyword, "")) for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    )
    images = labelled_series(header)
    segments = describe_structures(header) if is_structure_set(header) else describe_segments(header)
    if not images or not all(map(is_uid, (study, series, instance))):  # Folders are named after the UIDs.
        return []
    by_person: dict[str, bool] = {}
    for name, is_by_person in segments.values():
        by_person[name] = by_person.get(name, False) or is_by_person
    when, disputed, author = _creation_time(header), disputed_organs(header), author_of(header)
    return [
        StoredSegment(study, series, instance, images, when, name, is_by_person and name not in disputed, author)
        for name, is_by_person in by_person.items()
        if name
    ]


def _creation_time(header: Dataset) -> datetime:
    """Return the time at which an object was created; long ago if it has no valid time, or one in the future."""
    zone, latest = str(header.get("TimezoneOffsetFromUTC") or ""), datetime.now(timezone.utc) + timedelta(days=1)
    for prefix in ("StructureSet", "Content", "Series"):
        date, time = (str(header.get(f"{prefix}{part}") or "") for part in ("Date", "Time"))
        try:
            if date and time and (created := DT(date + time + zone).astimezone(timezone.utc)) < latest:
                return created
        except (ValueError, OverflowError):
            continue
    return _LONG_AGO


def write_segments(
    folder: Path, label: Dataset, image: Volume, positions: SlicePositions, notes: list[str] | None = None
) -> None:
    """Write the masks of a label object as files to a folder, which appears when it is complete.

    If a structure cannot be read, the reason is written instead.

    Args:
        folder: Folder of the files, which must not exist.
        label: Label object; reading changes it.
        image: Volume of the label.
        positions: Positions of the image's slices.
        notes: See ``read_structures``.

    Raises:
        InputError: as ``read_label``.
        OSError: if the disk is full.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    index: dict[str, tuple[str, list[int]]] = {}
    unreadable: dict[str, str] = {}
    try:
        for number, segment in enumerate(read_label(label, image, positions, unreadable, notes)):
            index[segment.name] = f"{number}.nii.gz", sorted(segment.slices)
            write_nifti(partial / f"{number}.nii.gz", Volume(segment.mask.astype(np.uint8), image.affine))
        (partial / "unreadable.json").write_text(json.dumps(unreadable))
        (partial / "segments.json").write_text(json.dumps(index))
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if not folder.exists():  # Otherwise another process has written the same files.
            raise


def read_segment(folder: Path, name: str) -> OrganLabel:
    """Return one label of a folder of ``write_segments``.

    Args:
        folder: Folder of the files.
        name: Name of the label.

    Raises:
        InputError: if the structure cannot be read, or the SEG has no frame of the label.
    """
    index = json.loads((folder / "segments.json").read_text())
    if name not in index:
        reasons = folder / "unreadable.json"
        if reasons.exists() and (reason := json.loads(reasons.read_text()).get(name)):
            raise InputError(reason)
        raise InputError(f"{name} is empty in the newest DICOM segmentation. Segment it and export it again.")
    file, slices = index[name]
    return OrganLabel(folder / file, frozenset(slices))
