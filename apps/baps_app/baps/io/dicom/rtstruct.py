"""Read and write DICOM RT Structure Sets (RTSTRUCT), which hold contours in patient millimetres.

A contour encloses the centres of the voxels that it marks, or passes through them. Contours of one structure on one
slice are combined by the even-odd rule, so holes are read both if a file draws them as separate contours and if it
joins them to the outer contour by a narrow channel ("keyhole"), as DICOM says. Holes are written as keyholes, which
every reader understands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, UID, ExplicitVRLittleEndian, generate_uid

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io.dicom.seg import Segment, complete_headers, even_depths, source_frames
from baps.utils.limits import check_size

RTSTRUCT_CLASS = UID("1.2.840.10008.5.1.4.1.1.481.3")
_DETACHED_STUDY_CLASS = UID("1.2.840.10008.3.1.2.3.1")
"""Retired SOP class by which a structure set refers to a study."""

_LPS_TO_RAS = np.array([-1.0, -1, 1])
_CLOSED_TYPES = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
"""Types of contours that enclose an area."""

_MAX_OFFSET = 0.1
"""Maximum distance of a contour from its slice as a share of the step, because planning systems round positions."""

_CENTRE_TOLERANCE = 1e-3
"""Distance, as a share of a voxel, within which a centre is on a contour, because positions in mm are rounded."""

_ALGORITHMS = {True: "SEMIAUTOMATIC", False: "MANUAL", None: ""}
"""ROIGenerationAlgorithm by whether a model made a mask."""
_CHUNK_EDGES = 256
"""Number of contour edges that are processed at once."""

_NAME = "BAPS"
_COPIED_KEYWORDS = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID", "StudyDate",
    "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyDescription",
)  # fmt: skip
"""Attributes that a structure set copies from its images."""


def describe_structures(dataset: Dataset) -> dict[int, tuple[str, bool]]:
    """Describe the structures in a structure set, or in its metadata alone, that enclose an area.

    Args:
        dataset: the object.

    Returns:
        By number the name, and whether a person drew or corrected the structure (nobody has seen an ``AUTOMATIC`` one).
    """
    structures = {
        int(item.ROINumber): (
            str(item.get("ROIName") or "").strip() or f"ROI {item.ROINumber}",
            str(item.get("ROIGenerationAlgorithm", "")) != "AUTOMATIC",
        )
        for item in dataset.get("StructureSetROISequence") or []
    }
    drawn = {
        int(item.ReferencedROINumber)
        for item in dataset.get("ROIContourSequence") or []
        if any(_encloses(contour) for contour in item.get("ContourSequence") or [])
    }
    return {number: structures[number] for number in structures if number in drawn}


def _encloses(contour: Dataset) -> bool:
    """Return whether a contour encloses an area."""
    return str(contour.get("ContourGeometricType", "")) in _CLOSED_TYPES


def read_structures(
    dataset: Dataset,
    image: Volume,
    depths: NDArray[np.float64] | None = None,
    frames: Sequence[NDArray[np.float64]] | None = None,
    frame_of_reference: str = "",
    unreadable: dict[str, str] | None = None,
    notes: list[str] | None = None,
) -> Iterator[Segment]:
    """Read a structure set structure by structure. Structures of the same name are merged.

    Points and open contours enclose nothing. They are skipped, with a note.

    Args:
        dataset: the object.
        image: the volume that it belongs to.
        depths: positions of the slices, see ``slice_depths``; None for even spacing.
        frames: the (4, 4) of ``source_frames`` for each slice, if pixels may lie beside the voxels of the volume.
        frame_of_reference: FrameOfReferenceUID of the image, or "" to skip the comparison.
        unreadable: receives the name of each structure that cannot be read and the reason, and the others are read.
        notes: receives sentences for the user on what was dropped.

    Yields:
        Each structure, in the voxel order of the image.

    Raises:
        InputError: if the object cannot be read; without ``unreadable`` also if a contour does not lie on a slice of
            the image, or a structure has another frame of reference.
    """
    notes = [] if notes is None else notes
    check_size("The RTSTRUCT", image.shape, 1)
    depths = even_depths(image) if depths is None else depths
    frames = frames or [image.affine @ _step(k) for k in range(image.shape[2])]
    try:
        structures, contours = describe_structures(dataset), _contours(dataset, notes)
    except Exception as error:  # pydicom raises many types; each means a broken or foreign object.
        raise InputError(f"The RTSTRUCT cannot be read ({type(error).__name__}). Export it again.") from error
    reference_frames = {
        int(item.ROINumber): item.get("ReferencedFrameOfReferenceUID") for item in dataset.StructureSetROISequence
    }
    for name in dict.fromkeys(name for name, _ in structures.values()):
        own = [number for number, (title, _) in structures.items() if title == name]
        try:
            if frame_of_reference and {reference_frames[number] or frame_of_reference for number in own} != {
                frame_of_reference
            }:
                raise InputError(
                    f"{name} has another frame of reference than the image (ReferencedFrameOfReferenceUID). Draw "
                    "it on this series."
                )
            parts = [contours.get(number, []) for number in own]
            segment, exceeds = _read_structure(name, parts, image, depths, frames)
        except InputError as error:
            if unreadable is None:
                raise
            unreadable[name] = str(error)
        else:
            if exceeds:
                notes.append(f"{name} extends beyond the image; the part outside was dropped.")
            yield segment


def _read_structure(
    name: str,
    parts: Sequence[Sequence[NDArray[np.float64]]],
    image: Volume,
    depths: NDArray[np.float64],
    frames: Sequence[NDArray[np.float64]],
) -> tuple[Segment, bool]:
    """Read a structure from its parts; contours are combined within a part only.

    Returns:
        The structure, and whether it extends beyond the image.
    """
    mask, slices, exceeds = np.zeros(image.shape, bool), set[int](), False
    for part in parts:
        by_slice: dict[int, list[NDArray[np.float64]]] = {}
        for points in part:
            index, placed = _locate(name, points, image, depths, frames)
            by_slice.setdefault(index, []).append(placed)
            exceeds |= bool(
                (placed < -0.5 - _CENTRE_TOLERANCE).any()
                or (placed > np.array(image.shape[:2]) - 0.5 + _CENTRE_TOLERANCE).any()
            )
        for index, placed_contours in by_slice.items():
            mask[:, :, index] |= fill_contours(placed_contours, image.shape[:2])
        slices.update(by_slice)
    return Segment(name, mask, frozenset(slices)), exceeds


def structure_references(dataset: Dataset) -> set[tuple[str, int]]:
    """Read which images the contours of a structure set were drawn on.

    If the contours do not say, these are the images that the structure set as a whole refers to.

    Args:
        dataset: the object.

    Returns:
        The images in the form of ``source_references``.
    """
    contours = (
        contour
        for structure in dataset.get("ROIContourSequence") or []
        for contour in structure.get("ContourSequence") or []
    )
    return _images_of(contours) or _images_of(_referenced_series(dataset))


def structure_series(dataset: Dataset) -> tuple[str, ...]:
    """Read the SeriesInstanceUIDs that a structure set refers to.

    Args:
        dataset: the object.

    Returns:
        The UIDs; those of the images that it was drawn on come first.
    """
    drawn_on = {(instance, 0) for instance, _ in structure_references(dataset)}
    series = sorted(_referenced_series(dataset), key=lambda item: _images_of([item]).isdisjoint(drawn_on))
    return tuple(dict.fromkeys(str(item.get("SeriesInstanceUID", "")) for item in series))


def _images_of(holders: Iterable[Dataset]) -> set[tuple[str, int]]:
    return {
        (str(item.get("ReferencedSOPInstanceUID", "")), int(frame))
        for holder in holders
        for item in holder.get("ContourImageSequence") or []
        for frame in np.atleast_1d(item.get("ReferencedFrameNumber") or 0)
    }


def _referenced_series(dataset: Dataset) -> Iterator[Dataset]:
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            yield from study.get("RTReferencedSeriesSequence") or []


def _contours(dataset: Dataset, notes: list[str]) -> dict[int, list[NDArray[np.float64]]]:
    """Return the contours of each structure by its number, (N, 3) in mm (RAS)."""
    names = {int(item.ROINumber): str(item.get("ROIName", "")) for item in dataset.StructureSetROISequence}
    contours: dict[int, list[NDArray[np.float64]]] = {}
    for structure in dataset.get("ROIContourSequence") or []:
        number, skipped = int(structure.ReferencedROINumber), 0
        for contour in structure.get("ContourSequence") or []:
            points = np.asarray(contour.get("ContourData") or [], float).reshape(-1, 3)
            if not _encloses(contour) or not len(points):
                skipped += 1
                continue
            if not np.isfinite(points).all():
                raise ValueError("ContourData")
            contours.setdefault(number, []).append(points * _LPS_TO_RAS)
        if skipped:
            notes.append(
                f"{skipped} contours of {names[number]} enclose no area (points, open lines) and were skipped."
            )
    return contours


def _locate(
    name: str,
    points: NDArray[np.float64],
    image: Volume,
    depths: NDArray[np.float64],
    frames: Sequence[NDArray[np.float64]],
) -> tuple[int, NDArray[np.float64]]:
    """Return the slice along K that a contour lies on, and its points as voxel indices along I and J, (N, 2)."""
    distances = np.abs((points @ image.slice_normal)[:, None] - depths).max(
        0
    )  # The largest distance of the contour's points.
    index = int(distances.argmin())
    step = float(np.diff(depths).min()) if len(depths) > 1 else image.spacing[2]
    if distances[index] >= _MAX_OFFSET * step:
        raise InputError(
            f"A contour of {name} is {distances[index]:.2f} mm off the nearest slice of the image. The RTSTRUCT was "
            "drawn on another series, or between slices, or slices are missing here. Export both from one series."
        )
    affine = frames[index]
    # Along the normal, slices may be spaced a little unevenly; within the slice, pixels are not.
    placed = (points - affine[:3, 3]) @ np.linalg.pinv(affine[:3, :2]).T
    return index, np.asarray(placed, np.float64)


def _step(k: int) -> NDArray[np.float64]:
    """Return the (4, 4) that shifts a voxel by a number of slices."""
    step = np.eye(4)
    step[2, 3] = k
    return step


def fill_contours(contours: Sequence[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill closed contours by the even-odd rule. Voxels whose centre lies on a contour are marked too.

    Programs that draw contours through the centres of the outermost voxels mean these to be included.

    Args:
        contours: voxel indices along I and J, (N, 2) each; the last point is joined to the first.
        shape: numbers of voxels along I and J.

    Returns:
        The mask, (I, J).
    """
    crossed = np.zeros((shape[0] + 1, shape[1]), np.int64)
    on_contour = np.zeros(shape, bool)
    all_starts = np.concatenate(contours)
    all_ends = np.concatenate([np.roll(points, -1, 0) for points in contours])
    for begin in range(0, len(all_starts), _CHUNK_EDGES):  # Every edge may cross every row.
        starts, ends = all_starts[begin : begin + _CHUNK_EDGES], all_ends[begin : begin + _CHUNK_EDGES]
        crossing, row = _crossings(starts, ends, shape[1])
        np.add.at(crossed, (np.clip(np.ceil(crossing), 0, shape[0]).astype(int), row), 1)
        on = [starts]
        for axes in (slice(None), slice(None, None, -1)):  # Crossings of rows along I, and along J.
            at, line = _crossings(starts[:, axes], ends[:, axes], shape[1] if axes.step is None else shape[0])
            on.append(np.stack([at, line], 1)[:, axes])
        points = np.concatenate(on)
        centres = np.rint(points)
        near = (np.abs(points - centres) < _CENTRE_TOLERANCE).all(1) & (centres >= 0).all(1) & (centres < shape).all(1)
        on_contour[tuple(centres[near].astype(int).T)] = True
    inside = np.asarray(np.cumsum(crossed[:-1], axis=0) % 2 == 1)
    return inside | on_contour


def _crossings(
    starts: NDArray[np.float64], ends: NDArray[np.float64], rows: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return where edges, (N, 2) from and to, cross the centres of rows: the index along the row, and the row.

    An edge that goes up crosses the row that it begins on, but not the one that it ends on. Of two edges that meet on a
    row, one crosses it, or both or none where they turn back.
    """
    (x0, y0), (x1, y1) = starts.T, ends.T
    first, last = np.clip(np.ceil(np.sort([y0, y1], axis=0)), 0, rows).astype(int)  # The last row is not crossed.
    counts = last - first
    edge = np.repeat(np.arange(len(counts)), counts)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    along = (row - y0[edge]) / (y1[edge] - y0[edge])
    return x0[edge] + along * (x1[edge] - x0[edge]), row


def write_structures(
    sources: Sequence[Dataset],
    image: Volume,
    masks: Mapping[str, NDArray[np.bool_]],
    when: datetime,
    author: str = "",
    by_model: bool | None = False,
    number: int | None = None,
) -> FileDataset:
    """Make a structure set with one structure for each mask, in a new series of the same study.

    Malformed elements of the headers are left out.

    Args:
        sources: headers of the images of the series, one per slice, or one multi-frame image; in any order.
        image: the volume that they make.
        masks: masks by name, (I, J, K); they may overlap.
        when: time of creation, with a time zone.
        author: name of the responsible person.
        by_model: whether a model made the masks and a person confirmed them; None if unknown.
        number: number of the volume, from 1, if the images make several.

    Returns:
        The structure set.

    Raises:
        InputError: if the images do not make the volume, lack their study, series or frame of reference, or do not
            identify the patient legibly.
    """
    frames = source_frames(sources, image, number)
    drawn_on = {str(source.get("SOPInstanceUID")): source for source, _, _ in frames.values()}
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID"):
        if not all(source.get(keyword) for source in sources):
            raise InputError(
                f"An RTSTRUCT cannot be made for this series: its header has no {keyword}. Save the label as a file."
            )
    first = complete_headers(sources, image)[0]
    structure_set = _empty(first, when, author)
    structure_set.ReferencedFrameOfReferenceSequence = [_references(list(drawn_on.values()))]
    for number, (name, mask) in enumerate(masks.items(), start=1):
        structure, contours, observation = Dataset(), Dataset(), Dataset()
        structure.ROINumber = contours.ReferencedROINumber = observation.ReferencedROINumber = number
        structure.ReferencedFrameOfReferenceUID = first.FrameOfReferenceUID
        structure.ROIName = name[:64]
        structure.ROIGenerationAlgorithm = _ALGORITHMS[by_model]
        hue = crc32(name.encode())  # A structure of this name always has the same colour.
        contours.ROIDisplayColor = [64 + (hue >> shift) % 192 for shift in (0, 8, 16)]
        drawn = [
            _contour(outline, *frames[k])
            for k in np.flatnonzero(mask.any((0, 1))).tolist()
            for outline in trace_outlines(mask[:, :, k])
        ]
        if drawn:  # DICOM forbids an empty sequence here.
            contours.ContourSequence = drawn
        observation.ObservationNumber = number
        observation.RTROIInterpretedType = "ORGAN"
        observation.ROIInterpreter = author.replace("\\", " ").replace("=", " ")[:64]
        structure_set.StructureSetROISequence.append(structure)
        structure_set.ROIContourSequence.append(contours)
        structure_set.RTROIObservationsSequence.append(observation)
    return structure_set


def trace_outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Trace the contours of a mask of one slice, midway between the centres of marked and other voxels.

    Args:
        mask: the mask, (I, J).

    Returns:
        Voxel indices along I and J, (N, 2) each; a contour is joined to its holes by channels without width.
    """
    from skimage.measure import find_contours, points_in_poly  # The import takes half a second.

    contours = [
        points[:-1] - 1 for points in find_contours(np.pad(mask, 1).astype(np.float32), 0.5, fully_connected="low")
    ]
    outer = [points for points in contours if _area(points) < 0]  # Around a hole, contours run the other way.
    holes = [points for points in contours if _area(points) > 0]
    for hole in sorted(holes, key=lambda points: float(points[:, 0].min())):
        enclosing = [n for n, points in enumerate(outer) if points_in_poly(hole[:1], points)[0]]
        innermost = min(enclosing, key=lambda n: abs(_area(outer[n])))
        outer[innermost] = _join_hole(outer[innermost], hole)
    return outer


def _area(points: NDArray[np.float64]) -> float:
    """Return the area of a closed contour, which is negative if the contour runs the other way."""
    (x, y), (next_x, next_y) = points.T, np.roll(points, -1, 0).T
    return float((x * next_y - next_x * y).sum() / 2)


def _join_hole(outer: NDArray[np.float64], hole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Join an outer contour and a hole in it to one contour.

    The channel leads from the point of the hole with the lowest I to the nearest point below it. Holes that begin
    later, which are joined afterwards, are not in its way.
    """
    start = int(hole[:, 0].argmin())
    distances = np.where(outer[:, 0] < hole[start, 0], ((outer - hole[start]) ** 2).sum(1), np.inf)
    end = int(distances.argmin())
    return np.concatenate([outer[: end + 1], np.roll(hole, -start, 0), hole[start : start + 1], outer[end:]])


def _contour(points: NDArray[np.float64], source: Dataset, frame: int, affine: NDArray[np.float64]) -> Dataset:
    contour = Dataset()
    contour.ContourImageSequence = [_reference(source)]
    if int(source.get("NumberOfFrames") or 1) > 1:
        contour.ContourImageSequence[0].ReferencedFrameNumber = frame
    contour.ContourGeometricType = "CLOSED_PLANAR"
    contour.NumberOfContourPoints = len(points)
    positions = (points @ affine[:3, :2].T + affine[:3, 3]) * _LPS_TO_RAS
    contour.ContourData = [f"{value:.10g}" for value in positions.ravel()]  # DICOM allows 16 characters.
    return contour


def _reference(source: Dataset) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    return reference


def _references(sources: Sequence[Dataset]) -> Dataset:
    """Make the references to frame of reference, study, series and images that a structure set was drawn on."""
    frame, study, series = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = sources[0].SeriesInstanceUID
    series.ContourImageSequence = [_reference(source) for source in sources]
    study.ReferencedSOPClassUID = _DETACHED_STUDY_CLASS
    study.ReferencedSOPInstanceUID = sources[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = sources[0].FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _empty(source: Dataset, when: datetime, author: str) -> FileDataset:
    """Make a structure set without structures for the patient and study of the image."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTSTRUCT_CLASS, generate_uid(None)
    meta.TransferSyntaxUID, meta.ImplementationClassUID = ExplicitVRLittleEndian, PYDICOM_IMPLEMENTATION_UID
    structure_set = FileDataset("", {}, preamble=b"\0" * 128, file_meta=meta)
    structure_set.is_little_endian, structure_set.is_implicit_VR = True, False
    structure_set.SpecificCharacterSet = "ISO_IR 192"  # Unicode, for the names of patients and structures.
    for keyword in _COPIED_KEYWORDS:
        setattr(structure_set, keyword, source.get(keyword) or "")
    structure_set.SOPClassUID, structure_set.SOPInstanceUID = (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
    )
    structure_set.SeriesInstanceUID, structure_set.FrameOfReferenceUID = generate_uid(None), source.FrameOfReferenceUID
    structure_set.Modality, structure_set.SeriesNumber, structure_set.InstanceNumber = "RTSTRUCT", 301, 1
    structure_set.PositionReferenceIndicator = source.get("PositionReferenceIndicator") or ""
    structure_set.Manufacturer = structure_set.ManufacturerModelName = _NAME
    structure_set.SoftwareVersions = version("baps-monailabel")
    structure_set.SeriesDescription = structure_set.StructureSetLabel = _NAME
    structure_set.OperatorsName = author.replace("\\", " ").replace("=", " ").replace("^", " ")[:64]
    date, time = when.strftime("%Y%m%d"), when.strftime("%H%M%S.%f")
    structure_set.InstanceCreationDate = structure_set.SeriesDate = structure_set.StructureSetDate = date
    structure_set.InstanceCreationTime = structure_set.SeriesTime = structure_set.StructureSetTime = time
    structure_set.TimezoneOffsetFromUTC = when.strftime("%z")
    structure_set.StructureSetROISequence, structure_set.ROIContourSequence, structure_set.RTROIObservationsSequence = (
        [],
        [],
        [],
    )
    return structure_set
