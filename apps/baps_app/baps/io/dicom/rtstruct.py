"""DICOM RT Structure Sets (RTSTRUCT): contours in patient millimetres, read into masks and made from masks.

A contour encloses the centres of the voxels that it marks, or runs through them. Contours of one structure on one slice
are combined by the even-odd rule, so that holes are read both where a file draws them as contours of their own and
where it joins them to the outer contour by a narrow channel ("keyhole"), as DICOM says. Holes are written as keyholes,
which every reader understands.
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
_STUDY_CLASS = UID("1.2.840.10008.3.1.2.3.1")
"""Retired; what a structure set names a study by."""

_LPS_TO_RAS = np.array([-1.0, -1, 1])
_AREAS = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
"""The types of contours that enclose an area."""

_SAME_PLACE = 0.1
"""Share of the step between slices by which a contour may lie off its slice: planning systems round positions."""

_ON = 1e-3
"""Share of a voxel within which a centre lies on a contour: positions in mm are rounded."""

_ALGORITHMS = {True: "SEMIAUTOMATIC", False: "MANUAL", None: ""}
"""By whether a model made a mask."""
_EDGES = 256
"""Edges of contours that are looked at in one go."""

_NAME = "BAPS"
_TAKEN_OVER = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID", "StudyDate",
               "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyDescription")  # fmt: skip
"""What a structure set takes over from its images."""


def structures_said(dataset: Dataset) -> dict[int, tuple[str, bool]]:
    """What a structure set, or its metadata alone, says of the structures that enclose an area: by number the name, and
    whether a person drew or corrected it (one that is ``AUTOMATIC`` was seen by none)."""
    said = {
        int(one.ROINumber): (
            str(one.get("ROIName") or "").strip() or f"ROI {one.ROINumber}",
            str(one.get("ROIGenerationAlgorithm", "")) != "AUTOMATIC",
        )
        for one in dataset.get("StructureSetROISequence") or []
    }
    drawn = {
        int(one.ReferencedROINumber)
        for one in dataset.get("ROIContourSequence") or []
        if any(_encloses(contour) for contour in one.get("ContourSequence") or [])
    }
    return {number: said[number] for number in said if number in drawn}


def _encloses(contour: Dataset) -> bool:
    """Whether a contour encloses an area."""
    return str(contour.get("ContourGeometricType", "")) in _AREAS


def read_structures(
    dataset: Dataset,
    image: Volume,
    depths: NDArray[np.float64] | None = None,
    frames: Sequence[NDArray[np.float64]] | None = None,
    frame_of_reference: str = "",
    unreadable: dict[str, str] | None = None,
    notes: list[str] | None = None,
) -> Iterator[Segment]:
    """Read a structure set, structure by structure; structures of one name are one.

    Points and open contours enclose nothing. They are left out, which a note says.

    Args:
        dataset: the object.
        image: the volume that it belongs to.
        depths: of its slices, see ``slice_depths``; without them they are taken to lie evenly.
        frames: for each slice the (4, 4) of ``source_frames``, where pixels may lie beside the voxels of the volume.
        frame_of_reference: FrameOfReferenceUID of the image; without it, it is not compared.
        unreadable: gets the name of each structure that cannot be read and why, and the others are read.
        notes: gets sentences for the user on what was left out.

    Raises:
        InputError: if it cannot be read; without ``unreadable`` also if a contour does not lie on a slice of the image,
            or a structure lies in another frame of reference.
    """
    notes = [] if notes is None else notes
    check_size("The RTSTRUCT", image.shape, 1)
    depths = even_depths(image) if depths is None else depths
    frames = frames or [image.affine @ _step(k) for k in range(image.shape[2])]
    try:
        said, contours = structures_said(dataset), _contours(dataset, notes)
    except Exception as error:  # pydicom raises many kinds; each means a broken or foreign object.
        raise InputError(f"The RTSTRUCT cannot be read ({type(error).__name__}). Export it again.") from error
    lies_in = {int(one.ROINumber): one.get("ReferencedFrameOfReferenceUID") for one in dataset.StructureSetROISequence}
    for name in dict.fromkeys(name for name, _ in said.values()):
        own = [number for number, (called, _) in said.items() if called == name]
        try:
            if frame_of_reference and {lies_in[number] or frame_of_reference for number in own} != {frame_of_reference}:
                raise InputError(
                    f"{name} lies in another frame of reference than the image (ReferencedFrameOfReferenceUID). Draw "
                    "it on this series."
                )
            parts = [contours.get(number, []) for number in own]
            found, beyond = _read_structure(name, parts, image, depths, frames)
        except InputError as error:
            if unreadable is None:
                raise
            unreadable[name] = str(error)
        else:
            if beyond:
                notes.append(f"{name} reaches beyond the image; what lies outside was left out.")
            yield found


def _read_structure(
    name: str,
    parts: Sequence[Sequence[NDArray[np.float64]]],
    image: Volume,
    depths: NDArray[np.float64],
    frames: Sequence[NDArray[np.float64]],
) -> tuple[Segment, bool]:
    """Read a structure, whose parts are contours that are combined among themselves only.

    Returns:
        The structure, and whether it reaches beyond the image.
    """
    mask, slices, beyond = np.zeros(image.shape, bool), set[int](), False
    for part in parts:
        by_slice: dict[int, list[NDArray[np.float64]]] = {}
        for points in part:
            index, placed = _place(name, points, image, depths, frames)
            by_slice.setdefault(index, []).append(placed)
            beyond |= bool((placed < -0.5 - _ON).any() or (placed > np.array(image.shape[:2]) - 0.5 + _ON).any())
        for index, placed_contours in by_slice.items():
            mask[:, :, index] |= enclosed(placed_contours, image.shape[:2])
        slices.update(by_slice)
    return Segment(name, mask, frozenset(slices)), beyond


def structure_references(dataset: Dataset) -> set[tuple[str, int]]:
    """Read which images the contours of a structure set were drawn on, in the form of ``source_references``.

    Where the contours do not say, it is the images that the structure set as a whole refers to.
    """
    contours = (
        contour
        for structure in dataset.get("ROIContourSequence") or []
        for contour in structure.get("ContourSequence") or []
    )
    return _images_of(contours) or _images_of(_referenced_series(dataset))


def structure_series(dataset: Dataset) -> tuple[str, ...]:
    """Read the SeriesInstanceUIDs of the images that a structure set refers to, first those that it was drawn on."""
    drawn_on = {(instance, 0) for instance, _ in structure_references(dataset)}
    series = sorted(_referenced_series(dataset), key=lambda one: _images_of([one]).isdisjoint(drawn_on))
    return tuple(dict.fromkeys(str(one.get("SeriesInstanceUID", "")) for one in series))


def _images_of(holders: Iterable[Dataset]) -> set[tuple[str, int]]:
    return {
        (str(one.get("ReferencedSOPInstanceUID", "")), int(frame))
        for holder in holders
        for one in holder.get("ContourImageSequence") or []
        for frame in np.atleast_1d(one.get("ReferencedFrameNumber") or 0)
    }


def _referenced_series(dataset: Dataset) -> Iterator[Dataset]:
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            yield from study.get("RTReferencedSeriesSequence") or []


def _contours(dataset: Dataset, notes: list[str]) -> dict[int, list[NDArray[np.float64]]]:
    """By the number of each structure its contours, (N, 3) mm, RAS."""
    names = {int(one.ROINumber): str(one.get("ROIName", "")) for one in dataset.StructureSetROISequence}
    found: dict[int, list[NDArray[np.float64]]] = {}
    for structure in dataset.get("ROIContourSequence") or []:
        number, skipped = int(structure.ReferencedROINumber), 0
        for contour in structure.get("ContourSequence") or []:
            points = np.asarray(contour.get("ContourData") or [], float).reshape(-1, 3)
            if not _encloses(contour) or not len(points):
                skipped += 1
                continue
            if not np.isfinite(points).all():
                raise ValueError("ContourData")
            found.setdefault(number, []).append(points * _LPS_TO_RAS)
        if skipped:
            notes.append(f"{skipped} contours of {names[number]} enclose no area (points, open lines): left out.")
    return found


def _place(
    name: str,
    points: NDArray[np.float64],
    image: Volume,
    depths: NDArray[np.float64],
    frames: Sequence[NDArray[np.float64]],
) -> tuple[int, NDArray[np.float64]]:
    """The slice across K that a contour lies on, and its points as voxel indices, (N, 2), along I and J."""
    away = np.abs((points @ image.slice_normal)[:, None] - depths).max(0)  # Of the farthest point of the contour.
    index = int(away.argmin())
    step = float(np.diff(depths).min()) if len(depths) > 1 else image.spacing[2]
    if away[index] >= _SAME_PLACE * step:
        raise InputError(
            f"A contour of {name} lies {away[index]:.2f} mm off the nearest slice of the image. The RTSTRUCT was drawn "
            "on another series, or between slices, or slices are missing here. Export both from one series."
        )
    affine = frames[index]
    # Along the normal the slices may lie a little unevenly; within the slice they do not.
    placed = (points - affine[:3, 3]) @ np.linalg.pinv(affine[:3, :2]).T
    return index, np.asarray(placed, np.float64)


def _step(k: int) -> NDArray[np.float64]:
    """From a voxel to the one so many slices on, (4, 4)."""
    step = np.eye(4)
    step[2, 3] = k
    return step


def enclosed(contours: Sequence[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which voxels of a slice have their centre inside closed contours, by the even-odd rule, or on one.

    Programs that draw contours from centre to centre of the outermost voxels mean these too.

    Args:
        contours: (N, 2) each, voxel indices along I and J; the last point is joined to the first.
        shape: voxels along I and J.

    Returns:
        (I, J).
    """
    crossed = np.zeros((shape[0] + 1, shape[1]), np.int64)
    on_one = np.zeros(shape, bool)
    all_starts = np.concatenate(contours)
    all_ends = np.concatenate([np.roll(points, -1, 0) for points in contours])
    for begin in range(0, len(all_starts), _EDGES):  # Each may cross every row.
        starts, ends = all_starts[begin : begin + _EDGES], all_ends[begin : begin + _EDGES]
        crossing, row = _crossings(starts, ends, shape[1])
        np.add.at(crossed, (np.clip(np.ceil(crossing), 0, shape[0]).astype(int), row), 1)
        on = [starts]
        for axes in (slice(None), slice(None, None, -1)):  # Where the contours cross rows along I, and along J.
            at, line = _crossings(starts[:, axes], ends[:, axes], shape[1] if axes.step is None else shape[0])
            on.append(np.stack([at, line], 1)[:, axes])
        points = np.concatenate(on)
        centres = np.rint(points)
        near = (np.abs(points - centres) < _ON).all(1) & (centres >= 0).all(1) & (centres < shape).all(1)
        on_one[tuple(centres[near].astype(int).T)] = True
    inside = np.asarray(np.cumsum(crossed[:-1], axis=0) % 2 == 1)
    return inside | on_one


def _crossings(
    starts: NDArray[np.float64], ends: NDArray[np.float64], rows: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Where edges, (N, 2) from and to, cross the centres of rows: the index along the row, and the row.

    An edge crosses the row that it begins on if it goes up, not the one that it ends on: of two edges that meet on a
    row one crosses it, or both or none where they turn back.
    """
    (x0, y0), (x1, y1) = starts.T, ends.T
    first, last = np.clip(np.ceil(np.sort([y0, y1], axis=0)), 0, rows).astype(int)  # The last is not crossed.
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

    Args:
        sources: headers of the images of the series, one a slice, or one multi-frame image; in any order.
        image: the volume that they make.
        masks: by name, (I, J, K); they may overlap.
        when: the time that it says it was made at, with a time zone.
        author: who stands by it.
        by_model: whether a model made the masks, and a person confirmed them; None where that is not known.
        number: of the volume, from 1, where the images make several.

    What is malformed in the headers is left out.

    Raises:
        InputError: if the images do not make the volume, or do not name their study, series and frame of reference; if
            they say in no readable way whose they are.
    """
    frames = source_frames(sources, image, number)
    drawn_on = {str(source.get("SOPInstanceUID")): source for source, _, _ in frames.values()}
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID"):
        if not all(source.get(keyword) for source in sources):
            raise InputError(
                f"No RTSTRUCT can be made for this series: its header has no {keyword}. Save the label as a file."
            )
    first = complete_headers(sources, image)[0]
    made = _empty(first, when, author)
    made.ReferencedFrameOfReferenceSequence = [_references(list(drawn_on.values()))]
    for number, (name, mask) in enumerate(masks.items(), start=1):
        structure, contours, observation = Dataset(), Dataset(), Dataset()
        structure.ROINumber = contours.ReferencedROINumber = observation.ReferencedROINumber = number
        structure.ReferencedFrameOfReferenceUID = first.FrameOfReferenceUID
        structure.ROIName = name[:64]
        structure.ROIGenerationAlgorithm = _ALGORITHMS[by_model]
        hue = crc32(name.encode())  # The same colour whenever the structure is written.
        contours.ROIDisplayColor = [64 + (hue >> shift) % 192 for shift in (0, 8, 16)]
        drawn = [
            _contour(outline, *frames[k])
            for k in np.flatnonzero(mask.any((0, 1))).tolist()
            for outline in outlines(mask[:, :, k])
        ]
        if drawn:  # DICOM allows no empty sequence here.
            contours.ContourSequence = drawn
        observation.ObservationNumber = number
        observation.RTROIInterpretedType = "ORGAN"
        observation.ROIInterpreter = author.replace("\\", " ").replace("=", " ")[:64]
        made.StructureSetROISequence.append(structure)
        made.ROIContourSequence.append(contours)
        made.RTROIObservationsSequence.append(observation)
    return made


def outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Return the contours of a mask of one slice; they run midway between the centres of marked and other voxels.

    Args:
        mask: (I, J).

    Returns:
        (N, 2) each, voxel indices along I and J; a contour with holes is joined to them by channels without width.
    """
    from skimage.measure import find_contours, points_in_poly  # Take half a second to import.

    found = [
        points[:-1] - 1 for points in find_contours(np.pad(mask, 1).astype(np.float32), 0.5, fully_connected="low")
    ]
    outer = [points for points in found if _area(points) < 0]  # Around a hole they run the other way.
    holes = [points for points in found if _area(points) > 0]
    for hole in sorted(holes, key=lambda points: float(points[:, 0].min())):
        around = [n for n, points in enumerate(outer) if points_in_poly(hole[:1], points)[0]]
        innermost = min(around, key=lambda n: abs(_area(outer[n])))
        outer[innermost] = _joined(outer[innermost], hole)
    return outer


def _area(points: NDArray[np.float64]) -> float:
    """Of a closed contour; below 0 where it runs the other way round."""
    (x, y), (next_x, next_y) = points.T, np.roll(points, -1, 0).T
    return float((x * next_y - next_x * y).sum() / 2)


def _joined(outer: NDArray[np.float64], hole: NDArray[np.float64]) -> NDArray[np.float64]:
    """An outer contour and a hole in it as one contour.

    The channel leads from where the hole begins along I to the nearest point before it. Holes that begin later, which
    are joined afterwards, are not in its way.
    """
    start = int(hole[:, 0].argmin())
    away = np.where(outer[:, 0] < hole[start, 0], ((outer - hole[start]) ** 2).sum(1), np.inf)
    end = int(away.argmin())
    return np.concatenate([outer[: end + 1], np.roll(hole, -start, 0), hole[start : start + 1], outer[end:]])


def _contour(points: NDArray[np.float64], source: Dataset, frame: int, affine: NDArray[np.float64]) -> Dataset:
    contour = Dataset()
    contour.ContourImageSequence = [_reference(source)]
    if int(source.get("NumberOfFrames") or 1) > 1:
        contour.ContourImageSequence[0].ReferencedFrameNumber = frame
    contour.ContourGeometricType = "CLOSED_PLANAR"
    contour.NumberOfContourPoints = len(points)
    places = (points @ affine[:3, :2].T + affine[:3, 3]) * _LPS_TO_RAS
    contour.ContourData = [f"{value:.10g}" for value in places.ravel()]  # DICOM has room for 16 characters.
    return contour


def _reference(source: Dataset) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    return reference


def _references(sources: Sequence[Dataset]) -> Dataset:
    """The frame of reference, study, series and images that a structure set was drawn on."""
    frame, study, series = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = sources[0].SeriesInstanceUID
    series.ContourImageSequence = [_reference(source) for source in sources]
    study.ReferencedSOPClassUID = _STUDY_CLASS
    study.ReferencedSOPInstanceUID = sources[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = sources[0].FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _empty(source: Dataset, when: datetime, author: str) -> FileDataset:
    """A structure set of the image's patient and study without structures."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTSTRUCT_CLASS, generate_uid(None)
    meta.TransferSyntaxUID, meta.ImplementationClassUID = ExplicitVRLittleEndian, PYDICOM_IMPLEMENTATION_UID
    made = FileDataset("", {}, preamble=b"\0" * 128, file_meta=meta)
    made.is_little_endian, made.is_implicit_VR = True, False
    made.SpecificCharacterSet = "ISO_IR 192"  # Unicode, for names of patients and structures.
    for keyword in _TAKEN_OVER:
        setattr(made, keyword, source.get(keyword) or "")
    made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    made.SeriesInstanceUID, made.FrameOfReferenceUID = generate_uid(None), source.FrameOfReferenceUID
    made.Modality, made.SeriesNumber, made.InstanceNumber = "RTSTRUCT", 301, 1
    made.PositionReferenceIndicator = source.get("PositionReferenceIndicator") or ""
    made.Manufacturer = made.ManufacturerModelName = _NAME
    made.SoftwareVersions = version("baps-monailabel")
    made.SeriesDescription = made.StructureSetLabel = _NAME
    made.OperatorsName = author.replace("\\", " ").replace("=", " ").replace("^", " ")[:64]
    date, time = when.strftime("%Y%m%d"), when.strftime("%H%M%S.%f")
    made.InstanceCreationDate = made.SeriesDate = made.StructureSetDate = date
    made.InstanceCreationTime = made.SeriesTime = made.StructureSetTime = time
    made.TimezoneOffsetFromUTC = when.strftime("%z")
    made.StructureSetROISequence, made.ROIContourSequence, made.RTROIObservationsSequence = [], [], []
    return made
