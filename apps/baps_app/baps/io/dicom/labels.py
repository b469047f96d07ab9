"""Read DICOM objects as label files: segmentations (SEG, Label Map) and structure sets (RTSTRUCT)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from baps.errors import InputError
from baps.imaging.label_map import LabelMap
from baps.imaging.volume import Volume
from baps.io.dicom.frames import HEADER_KEYWORDS
from baps.io.dicom.pixels import read_dataset
from baps.io.dicom.rtstruct import RTSTRUCT_CLASS, read_structures
from baps.io.dicom.seg import Segment, read_segmentation, slice_depths, source_frames

DICOM_SUFFIX = ".dcm"

MAX_SEGMENTS = 256
"""Maximum number of segments of a label, because they are compared with each other."""

_READERS: dict[str, Callable[..., Iterator[Segment]]] = {
    "1.2.840.10008.5.1.4.1.1.66.4": read_segmentation,  # Segmentation Storage
    "1.2.840.10008.5.1.4.1.1.66.7": read_segmentation,  # Label Map Segmentation Storage
    RTSTRUCT_CLASS: read_structures,
}

_SOURCE_KEYWORDS = [*HEADER_KEYWORDS, "FrameOfReferenceUID"]
"""Attributes that identify an image and its position."""


def find_label_object(path: Path) -> Path | None:
    """Find the segmentation or structure set that a path names, or that is the only file of a folder.

    Args:
        path: path of a file or a folder.

    Returns:
        Path of the file, or None.
    """
    if not path.is_dir():
        return path if path.suffix.lower() == DICOM_SUFFIX and _sop_class(path) in _READERS else None
    files = _files(path)
    return files[0] if len(files) == 1 and _sop_class(files[0]) in _READERS else None


def read_label_object(path: Path, image: Volume, source: Path | None = None) -> LabelMap:
    """Read a segmentation or a structure set. The values follow the order of the segments, from 1.

    Args:
        path: path of the file.
        image: the volume that it belongs to.
        source: DICOM series or file that the volume was read from, if any. Then the references of the object are
            checked, and slices may be spaced unevenly.

    Returns:
        The label map, in the voxel order of the image.

    Raises:
        InputError: if the object cannot be read, belongs to another series, does not lie on the voxels of the image, or
            has no segment.
    """
    dataset = _read_object(path)
    count = max(len(dataset.get(name) or []) for name in ("SegmentSequence", "StructureSetROISequence"))
    if count > MAX_SEGMENTS:
        raise InputError(f"The label {path.name} has {count} segments; {MAX_SEGMENTS} are supported. Export fewer.")
    headers = read_series_headers(source, _SOURCE_KEYWORDS) if source else []
    read = partial(_READERS[dataset.SOPClassUID], dataset, image)
    if headers:
        _check_belongs(path.name, dataset, headers)
        with suppress(InputError):  # For a part of a series, for example, even spacing is assumed.
            read = partial(read, depths=slice_depths(headers, image))
            if dataset.SOPClassUID == RTSTRUCT_CLASS:
                frames = source_frames(headers, image)
                read = partial(read, frames=[frames[k][2] for k in range(image.shape[2])])
    notes: list[str] = []
    if dataset.SOPClassUID == RTSTRUCT_CLASS:
        read = partial(read, notes=notes)
    names: dict[int, str] = {}

    def masks() -> Iterator[tuple[int, NDArray[np.bool_]]]:
        for value, segment in enumerate(read(), start=1):
            names[value] = segment.name or f"segment {value}"
            yield value, segment.mask

    labels = LabelMap.from_masks(masks())
    if not labels.layers:
        raise InputError(f"The label {path.name} has no segment. Segment the organ and export it again.")
    return LabelMap(labels.layers, names, notes=tuple(notes))


def read_series_headers(source: Path, keywords: list[str] | None = None) -> list[Dataset]:
    """Read the headers of the images in a DICOM series or file, without pixels.

    Args:
        source: path of a folder or a file.
        keywords: keywords of the attributes to read, or None for all.

    Returns:
        The headers; none if there are no images.
    """
    if not source.is_dir() and source.suffix.lower() != DICOM_SUFFIX:
        return []
    headers = []
    for file in _files(source) if source.is_dir() else [source]:
        header = _header(file, keywords)
        if header.get("SOPClassUID") not in _READERS and "Rows" in header:
            headers.append(header)
    return headers


def _header(file: Path, keywords: list[str] | None) -> Dataset:
    """Return a header, or an empty one if the file is not DICOM, which the image reader reports."""
    try:
        return read_dataset(file, tags=None if keywords is None else tuple(keywords))
    except Exception:  # pydicom raises many types.
        return Dataset()


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if not file.name.startswith(".") and file.is_file()]


def _sop_class(path: Path) -> str:
    """Return the SOPClassUID of a file, or "" if it is not DICOM."""
    try:
        meta = pydicom.filereader.read_file_meta_info(path)
        if sop_class := meta.get("MediaStorageSOPClassUID") or _is_deflated(meta):
            return str(sop_class)
        return str(read_dataset(path, tags=("SOPClassUID",)).get("SOPClassUID", ""))
    except Exception:  # pydicom raises many types; the image reader reports the error.
        return ""


def _read_object(path: Path) -> Dataset:
    if _is_deflated(pydicom.filereader.read_file_meta_info(path)):
        raise InputError(
            f"{path.name} is compressed as a whole (Deflated). Export it again in another transfer syntax."
        )
    return read_dataset(path, pixels=True)


def _is_deflated(meta: Dataset) -> bool:
    """Return whether a file is compressed as a whole, so that it inflates to any size when it is opened."""
    return meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian


def _check_belongs(name: str, dataset: Dataset, headers: Sequence[Dataset]) -> None:
    """Refuse an object that refers to other images only; without references, compare the frame of reference."""
    own = {str(dataset.get("SeriesInstanceUID")), str(dataset.get("StudyInstanceUID"))}
    references: dict[str, set[str]] = {"SeriesInstanceUID": set(), "ReferencedSOPInstanceUID": set()}
    for element in _elements(dataset):
        if element.keyword in references:
            references[element.keyword].add(str(element.value))
    series, instances = references["SeriesInstanceUID"] - own, references["ReferencedSOPInstanceUID"] - own
    images = {str(header.get("SOPInstanceUID")) for header in headers}
    if series or instances:
        same = not series.isdisjoint(str(header.get("SeriesInstanceUID")) for header in headers)
        if not same and instances.isdisjoint(images):
            raise InputError(
                f"The label {name} belongs to another series: it refers to neither the SeriesInstanceUID nor the "
                "images of this series. Give the label that was drawn on this series."
            )
        return
    frames = {str(element.value) for element in _elements(dataset) if element.keyword == "FrameOfReferenceUID"}
    series_frames = {str(header.FrameOfReferenceUID) for header in headers if header.get("FrameOfReferenceUID")}
    if frames and series_frames and frames.isdisjoint(series_frames):
        raise InputError(
            f"The label {name} has another frame of reference than the series (FrameOfReferenceUID). Give the "
            "label that was drawn on this series."
        )


def _elements(dataset: Dataset) -> Iterator[Any]:
    """Yield the identifiers (UI) of a dataset and of the sequences in it."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value or ():
                yield from _elements(item)
        elif element.VR == "UI":
            yield element
