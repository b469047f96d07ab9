"""DICOM objects as label files: segmentations (SEG, Label Map) and structure sets (RTSTRUCT)."""

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
from baps.io.dicom.frames import HEADER
from baps.io.dicom.pixels import read_dataset
from baps.io.dicom.rtstruct import RTSTRUCT_CLASS, read_structures
from baps.io.dicom.seg import Segment, read_segmentation, slice_depths, source_frames

DICOM_SUFFIX = ".dcm"

MOST_SEGMENTS = 256
"""Of one label; they are compared with each other."""

_READERS: dict[str, Callable[..., Iterator[Segment]]] = {
    "1.2.840.10008.5.1.4.1.1.66.4": read_segmentation,  # Segmentation Storage
    "1.2.840.10008.5.1.4.1.1.66.7": read_segmentation,  # Label Map Segmentation Storage
    RTSTRUCT_CLASS: read_structures,
}

_PLACES = [*HEADER, "FrameOfReferenceUID"]
"""What of a header says which image it is, and where it lies."""


def find_label_object(path: Path) -> Path | None:
    """Return the file of the segmentation or structure set that a path is, or that lies alone in a folder."""
    if not path.is_dir():
        return path if path.suffix.lower() == DICOM_SUFFIX and _kind(path) in _READERS else None
    files = _files(path)
    return files[0] if len(files) == 1 and _kind(files[0]) in _READERS else None


def read_label_object(path: Path, image: Volume, source: Path | None = None) -> LabelMap:
    """Read a segmentation or a structure set; the values follow the order of the segments, from 1 on.

    Args:
        path: the file.
        image: the volume that it belongs to.
        source: the DICOM series or file that the volume was read from, where it is one: then the references of the
            object are checked, and slices may lie unevenly.

    Raises:
        InputError: if it cannot be read, belongs to another series, does not lie on the voxels of the image, or holds
            no segment.
    """
    dataset = _read_object(path)
    count = max(len(dataset.get(name) or []) for name in ("SegmentSequence", "StructureSetROISequence"))
    if count > MOST_SEGMENTS:
        raise InputError(f"The label {path.name} has {count} segments; {MOST_SEGMENTS} are read. Export fewer.")
    headers = series_headers(source, _PLACES) if source else []
    read = partial(_READERS[dataset.SOPClassUID], dataset, image)
    if headers:
        _check_belongs(path.name, dataset, headers)
        with suppress(InputError):  # A part of the series, say: its slices are taken to lie evenly.
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

    found = LabelMap.from_masks(masks())
    if not found.layers:
        raise InputError(f"The label {path.name} holds no segment. Segment the organ and export it again.")
    return LabelMap(found.layers, names, notes=tuple(notes))


def series_headers(source: Path, keywords: list[str] | None = None) -> list[Dataset]:
    """Read the headers of the images of a DICOM series or file, without pixels; none if there are no such images.

    Args:
        source: a folder or a file.
        keywords: of the attributes to read; by default all.
    """
    if not source.is_dir() and source.suffix.lower() != DICOM_SUFFIX:
        return []
    found = []
    for file in _files(source) if source.is_dir() else [source]:
        header = _header(file, keywords)
        if header.get("SOPClassUID") not in _READERS and "Rows" in header:
            found.append(header)
    return found


def _header(file: Path, keywords: list[str] | None) -> Dataset:
    """A header; an empty one of a file that is no DICOM, which whoever reads the voxels says."""
    try:
        return read_dataset(file, tags=None if keywords is None else tuple(keywords))
    except Exception:  # pydicom raises many kinds.
        return Dataset()


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if not file.name.startswith(".") and file.is_file()]


def _kind(path: Path) -> str:
    """The SOPClassUID of a file, or "" of one that is no DICOM."""
    try:
        meta = pydicom.filereader.read_file_meta_info(path)
        if kind := meta.get("MediaStorageSOPClassUID") or _is_deflated(meta):
            return str(kind)
        return str(read_dataset(path, tags=("SOPClassUID",)).get("SOPClassUID", ""))
    except Exception:  # pydicom raises many kinds; whoever reads the file as an image says what is wrong with it.
        return ""


def _read_object(path: Path) -> Dataset:
    if _is_deflated(pydicom.filereader.read_file_meta_info(path)):
        raise InputError(f"{path.name} is packed as a whole (Deflated). Export it again in another transfer syntax.")
    return read_dataset(path, pixels=True)


def _is_deflated(meta: Dataset) -> bool:
    """Whether a file is packed as a whole: it unpacks to any size when it is opened."""
    return meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian


def _check_belongs(name: str, dataset: Dataset, headers: Sequence[Dataset]) -> None:
    """Refuse an object that refers to other images only. One that refers to none has its frame of reference alone."""
    own = {str(dataset.get("SeriesInstanceUID")), str(dataset.get("StudyInstanceUID"))}
    said: dict[str, set[str]] = {"SeriesInstanceUID": set(), "ReferencedSOPInstanceUID": set()}
    for element in _elements(dataset):
        if element.keyword in said:
            said[element.keyword].add(str(element.value))
    series, instances = said["SeriesInstanceUID"] - own, said["ReferencedSOPInstanceUID"] - own
    images = {str(header.get("SOPInstanceUID")) for header in headers}
    if series or instances:
        same = not series.isdisjoint(str(header.get("SeriesInstanceUID")) for header in headers)
        if not same and instances.isdisjoint(images):
            raise InputError(
                f"The label {name} belongs to another series: neither its SeriesInstanceUID nor its images are those "
                "that it refers to. Give the label that was drawn on this series."
            )
        return
    frames = {str(element.value) for element in _elements(dataset) if element.keyword == "FrameOfReferenceUID"}
    there = {str(header.FrameOfReferenceUID) for header in headers if header.get("FrameOfReferenceUID")}
    if frames and there and frames.isdisjoint(there):
        raise InputError(
            f"The label {name} lies in another frame of reference than the series (FrameOfReferenceUID). Give the "
            "label that was drawn on this series."
        )


def _elements(dataset: Dataset) -> Iterator[Any]:
    """The elements of a dataset and of the sequences in it that hold identifiers."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value or ():
                yield from _elements(item)
        elif element.VR == "UI":
            yield element
