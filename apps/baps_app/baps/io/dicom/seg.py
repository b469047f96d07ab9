"""DICOM Segmentation objects (SEG), read and written with highdicom.

A frame of the object is one segment on one slice; of a Label Map Segmentation, which highdicom 0.22 does not know, it
is all segments on one slice, and a pixel holds the number of its segment. Slices without a frame say nothing of the
segment: nobody looked there; a frame in which nothing is marked says that it is not there.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Any
from zlib import crc32

import numpy as np
from highdicom import UID, AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from numpy.typing import NDArray
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless, generate_uid

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io.dicom.codestream import check_frames
from baps.io.dicom.frames import Frame
from baps.io.dicom.header import IDENTITY, well_formed
from baps.io.dicom.pixels import decode_run_lengths
from baps.io.dicom.stacks import Stack, find_stack, round_half_up
from baps.utils.limits import check_size

# Of names that are not in DICOM's form: they would stand in the log.
warnings.filterwarnings("ignore", module=r"highdicom\.valuerep")

_NAME = "BAPS"
_STRUCTURE = Code("123037004", "SCT", "Anatomical Structure")
_LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])

_TAKEN_OVER = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
               "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator")  # fmt: skip
"""What a SEG takes over from its images."""

_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Rows", "Columns")
"""What an image must say, or no SEG can refer to it."""

_MOST_LETTERS = 64
"""Of a segment's name."""

_SAME_STEP = 0.02
"""Share of a voxel by which the steps within a frame may differ from those of the image."""

_SAME_PLACE = 0.1
"""Share of a voxel by which a frame may be shifted: headers round positions."""


@dataclass(frozen=True)
class Segment:
    """What is segmented under one label, in the voxel order of the image that it belongs to.

    Attributes:
        name: its label.
        mask: (I, J, K).
        slices: across K, of which the object has a frame.
    """

    name: str
    mask: NDArray[np.bool_]
    slices: frozenset[int]


def segments_said(dataset: Dataset) -> dict[int, tuple[str, bool]]:
    """What a SEG, or its metadata alone, says of its segments: by number the label, and whether a person drew or
    corrected it (a segment that is ``AUTOMATIC`` was seen by none). 0 is the background of a Label Map Segmentation."""
    return {
        int(segment.SegmentNumber): (
            str(segment.get("SegmentLabel", "")).strip(),
            str(segment.get("SegmentAlgorithmType", "")) != SegmentAlgorithmTypeValues.AUTOMATIC.value,
        )
        for segment in dataset.get("SegmentSequence", [])
        if int(segment.SegmentNumber)
    }


def slice_depths(headers: Sequence[Dataset], image: Volume, number: int | None = None) -> NDArray[np.float64]:
    """How far along the normal each slice lies, mm, in the order of K; the step between slices may vary a little.

    Args:
        headers: of the images of a series, one a slice, or one multi-frame image; in any order.
        image: the volume that they make.
        number: of the volume, from 1, where they make several.

    Raises:
        InputError: if they do not make it, or say nothing of where they lie.
    """
    stack = find_stack(headers, image, number)
    return np.array([frame.position for frame in stack.frames]) @ stack.frames[0].normal


def even_depths(image: Volume) -> NDArray[np.float64]:
    """How far along the normal each slice of a volume lies, mm, taken to lie evenly."""
    return np.array([_depth(image.affine @ _step(k), image) for k in range(image.shape[2])])


def source_frames(
    headers: Sequence[Dataset], image: Volume, number: int | None = None
) -> dict[int, tuple[Dataset, int, NDArray[np.float64]]]:
    """Find the image that each slice of a volume was read from.

    Args:
        headers, image, number: as in ``slice_depths``.

    Returns:
        For each index across K the header, the number of its frame from 1 on, and the (4, 4) from [i, j, 0] of the
        volume to where that frame's pixels lie, mm, RAS: in a straightened volume up to half a pixel beside its voxels.

    Raises:
        InputError: as ``slice_depths``.
    """
    found = {}
    stack = find_stack(headers, image, number)
    for k, (frame, offset) in enumerate(zip(stack.frames, stack.offsets, strict=True)):
        assert frame.position is not None and frame.orientation is not None
        affine = _affine(frame.position, frame.orientation.ravel(), (frame.spacing or (1.0, 1.0))[::-1])
        affine[:3, 3] -= affine[:3, :2] @ offset
        found[k] = headers[frame.source], frame.index + 1, affine
    return found


def source_references(dataset: Dataset) -> set[tuple[str, int]]:
    """Read which images a SEG was drawn on: SOPInstanceUIDs, and numbers of frames from 1 on (0 of images of one)."""
    return {
        (str(source.ReferencedSOPInstanceUID), int(frame))
        for group in dataset.get("PerFrameFunctionalGroupsSequence") or []
        for derivation in group.get("DerivationImageSequence") or []
        for source in derivation.get("SourceImageSequence") or []
        for frame in np.atleast_1d(source.get("ReferencedFrameNumber") or 0)
    }


def stack_references(headers: Sequence[Dataset], image: Volume, number: int) -> set[tuple[str, int]]:
    """Find the images that a volume of several was read from, in the form of ``source_references``.

    Args:
        headers, image, number: as in ``slice_depths``.
    """
    frames = find_stack(headers, image, number).frames
    return {(str(headers[one.source].SOPInstanceUID), one.index + 1 if one.count > 1 else 0) for one in frames}


def read_segmentation(dataset: Dataset, image: Volume, depths: NDArray[np.float64] | None = None) -> Iterator[Segment]:
    """Read a SEG, label by label; segments of one label are one.

    Args:
        dataset: the object. Of fractions, more than half counts as marked.
        image: the volume that it belongs to.
        depths: of its slices, see ``slice_depths``; without them they are taken to lie evenly.

    Raises:
        InputError: if it cannot be read, or its frames do not lie on the image's voxels.
    """
    if depths is None:
        depths = even_depths(image)
    try:
        _check_pixels(dataset)
        said, affines = segments_said(dataset), _frame_affines(dataset)
        pixels, numbers = _label_map(dataset, said) if _is_label_map(dataset) else _one_by_one(dataset)
        named: dict[str, list[int]] = {}
        for number in said:
            if any(number in frame for frame in numbers):
                named.setdefault(said[number][0], []).append(number)
    except InputError:
        raise
    except Exception as error:  # highdicom and pydicom raise many kinds; each means a broken or foreign object.
        raise InputError(f"The DICOM segmentation cannot be read ({type(error).__name__}). Export it again.") from error
    for name, own in named.items():
        mask, slices = np.zeros(image.shape, bool), set()
        for frame, affine, there in zip(pixels, affines, numbers, strict=True):
            if there.isdisjoint(own):
                continue
            marked = np.isin(frame, own) if _is_label_map(dataset) else frame.astype(bool)
            index, placed = _place(marked, affine, image, depths)
            mask[:, :, index] |= placed
            slices.add(index)
        yield Segment(name, mask, frozenset(slices))


def _check_pixels(dataset: Dataset) -> None:
    """Refuse frames that unpack to more than is allowed, or to others than the header says."""
    count, size = int(dataset.get("NumberOfFrames") or 1), (int(dataset.Rows), int(dataset.Columns), 1)
    check_size("The DICOM segmentation", (count, *size), -(-int(dataset.BitsAllocated) // 8))
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
        check_frames("The DICOM segmentation", dataset.PixelData, str(syntax), count, size)


def _is_label_map(dataset: Dataset) -> bool:
    return str(dataset.get("SegmentationType", "")) == "LABELMAP"


def _one_by_one(dataset: Dataset) -> tuple[NDArray[Any], list[set[int]]]:
    """The frames of a SEG, (F, rows, columns), and of each the number of its segment."""
    groups = _groups(dataset, "SegmentIdentificationSequence")
    pixels = _pixels(dataset)
    if dataset.SegmentationType != SegmentationTypeValues.BINARY.value:
        pixels = pixels > dataset.MaximumFractionalValue / 2
    return pixels, [{int(group.ReferencedSegmentNumber)} for group in groups]


def _label_map(dataset: Dataset, said: Mapping[int, object]) -> tuple[NDArray[Any], list[set[int]]]:
    """As ``_one_by_one``; a pixel is the number of its segment, and every frame shows every segment."""
    pixels = _pixels(dataset)
    if unnamed := {int(number) for number in np.unique(pixels)} - {0, *said, dataset.get("PixelPaddingValue", 0)}:
        raise InputError(
            f"The DICOM segmentation has pixels of the segments {sorted(unnamed)}, which its SegmentSequence does not "
            "name. Export it again."
        )
    return pixels, [set(said)] * len(pixels)


def _pixels(dataset: Dataset) -> NDArray[Any]:
    """(F, rows, columns)."""
    if dataset.file_meta.TransferSyntaxUID == RLELossless:
        return decode_run_lengths(dataset, "The DICOM segmentation")
    try:
        pixels = dataset.pixel_array
    except (NotImplementedError, RuntimeError) as error:  # No decoder.
        syntax = dataset.file_meta.TransferSyntaxUID.name
        raise InputError(
            f"The DICOM segmentation is packed as {syntax}, which cannot be decoded here. Export it uncompressed."
        ) from error
    return pixels if pixels.ndim == 3 else pixels[None]  # One frame comes without its axis.


def _lacking(error: Exception) -> str:
    """The attribute that an error is about, or its kind; not its text, which may quote a patient's."""
    name = str(getattr(error, "name", ""))
    return name if tag_for_keyword(name) else type(error).__name__


def write_segmentation(
    sources: Sequence[Dataset],
    image: Volume,
    masks: Mapping[str, NDArray[np.bool_]],
    slices: Mapping[str, frozenset[int]],
    when: datetime,
    author: str = "",
    by_model: bool = False,
    number: int | None = None,
) -> Dataset:
    """A SEG with one segment for each mask, in a new series of the same study.

    Args:
        sources: the images of the series without pixels, one a slice, or one multi-frame image; in any order.
        image: the volume that they make.
        masks: by label, (I, J, K); they may overlap.
        slices: by label, across K, on which the label was looked for; those with a mark count in any case. Where all
            labels have the same, frames without a mark are written too; else those are left out.
        when: the time that it says it was made at, with a time zone.
        author: who stands by it.
        by_model: whether a model made the masks, and a person confirmed them.
        number: of the volume, from 1, where the images make several.

    What is malformed in the headers is left out. Patient and study are taken over exactly. Where the images name no
    frame of reference, the SEG gets one that is always the same for the series.

    Raises:
        InputError: if the images do not make the volume or lack what a SEG needs, or if DICOM cannot hold a name; if
            something is marked where the slices of a straightened volume have no pixels.
    """
    _check_names(masks)
    stack = find_stack(sources, image, number)
    sources = complete_headers(sources, image)
    shown = {name: slices[name] | set(np.flatnonzero(mask.any((0, 1))).tolist()) for name, mask in masks.items()}
    same = len(set(map(frozenset, shown.values()))) == 1
    wanted = sorted(set().union(*shown.values()))
    try:
        pixels = np.stack([_source_pixels(name, mask, stack, wanted) for name, mask in masks.items()], -1)
        frames = [stack.frames[k] for k in wanted]
        segmentation = Segmentation(
            source_images=_source_images(sources, frames),
            pixel_array=pixels.view(np.uint8),
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=[_description(n, name, by_model) for n, name in enumerate(masks, start=1)],
            series_instance_uid=UID(),
            series_number=300,
            sop_instance_uid=UID(),
            instance_number=1,
            manufacturer=_NAME,
            manufacturer_model_name=_NAME,
            software_versions=version("baps-monailabel"),
            device_serial_number="0",
            content_label="LABELS",
            content_description="Labels made with MONAI Label",
            content_creator_name=author.replace("\\", " ").replace("=", " ")[:64] or None,
            omit_empty_frames=not same,
        )
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # Which may quote what nobody should read.
        raise InputError(
            "No DICOM segmentation can be made for this series: its header lacks what one needs "
            f"({_lacking(error)}). Save the label as a file instead."
        ) from error
    if frames[0].count > 1:
        _number_source_frames(segmentation, frames)
    segmentation.SpecificCharacterSet = "ISO_IR 192"  # Unicode, for names of patients and labels.
    segmentation.SeriesDescription = f"{_NAME}: {', '.join(masks)}"[:64]
    segmentation.ContentDate = segmentation.SeriesDate = when.strftime("%Y%m%d")
    segmentation.ContentTime = segmentation.SeriesTime = when.strftime("%H%M%S.%f")
    segmentation.TimezoneOffsetFromUTC = when.strftime("%z")
    return segmentation


def _source_pixels(name: str, mask: NDArray[np.bool_], stack: Stack, wanted: Sequence[int]) -> NDArray[np.bool_]:
    """The pixels (frames, rows, columns) of the source frames under a mask (I, J, K) of the volume."""
    columns, rows = stack.frames[0].size
    found = np.stack([mask[i : i + columns, j : j + rows, k].T for k in wanted for i, j in [stack.offsets[k]]])
    if outside := int(mask.sum() - found.sum()):
        raise InputError(
            f"{outside} voxels of {name} lie beside the slices as they were scanned, where the straightened volume was "
            "filled up. Erase them there. Nothing was saved."
        )
    return found


def _source_images(sources: Sequence[Dataset], frames: Sequence[Frame]) -> list[Dataset]:
    """The headers of some frames: one each, or one multi-frame header that is cut down to them."""
    if frames[0].count == 1:
        return [sources[frame.source] for frame in frames]
    objects = {frame.source for frame in frames}
    header = sources[frames[0].source]
    if len(objects) > 1 or "PerFrameFunctionalGroupsSequence" not in header:
        raise InputError(
            "No DICOM segmentation can be made for this series: a volume of it is spread over several objects of many "
            "frames, or its frames have no PerFrameFunctionalGroupsSequence. Save the label as a file instead."
        )
    reduced, shared = Dataset(), Dataset()
    reduced.update(header)
    shared.update((header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0])
    groups = [header.PerFrameFunctionalGroupsSequence[frame.index] for frame in frames]
    for name in ("PlaneOrientationSequence", "PixelMeasuresSequence"):  # Of one volume all frames have the same.
        if name not in shared and name in groups[0]:
            setattr(shared, name, groups[0][name].value)
    reduced.SharedFunctionalGroupsSequence, reduced.PerFrameFunctionalGroupsSequence = [shared], groups
    reduced.NumberOfFrames = len(groups)
    return [reduced]


def _number_source_frames(segmentation: Dataset, frames: Sequence[Frame]) -> None:
    """Let a SEG refer to frames by their numbers in the whole object."""
    groups = segmentation.PerFrameFunctionalGroupsSequence
    derivations = [one for group in groups for one in group.get("DerivationImageSequence") or []]
    # Frames of several segments may share the item of their source.
    for source in {id(item): item for one in derivations for item in one.SourceImageSequence}.values():
        if "ReferencedFrameNumber" in source:
            source.ReferencedFrameNumber = frames[int(source.ReferencedFrameNumber) - 1].index + 1


def _description(number: int, name: str, by_model: bool) -> SegmentDescription:
    organ = "".join(word.capitalize() for word in name.replace("_", " ").split())
    try:
        code = getattr(codes.SCT, organ)
    except (AttributeError, RuntimeError):  # Unknown, or of several meanings.
        code = _STRUCTURE
    kind, algorithm = SegmentAlgorithmTypeValues.MANUAL, None
    if by_model:
        kind = SegmentAlgorithmTypeValues.SEMIAUTOMATIC
        algorithm = AlgorithmIdentificationSequence(_NAME, codes.DCM.ArtificialIntelligence, version("baps-monailabel"))
    description = SegmentDescription(number, name, _STRUCTURE, code, kind, algorithm)
    hue = crc32(name.encode()) / (1 << 32) * 2 * np.pi  # The same colour whenever the organ is saved.
    description.RecommendedDisplayCIELabValue = list(CIELabColor(65, 60 * np.cos(hue), 60 * np.sin(hue)).value)
    return description


def _check_names(masks: Mapping[str, object]) -> None:
    """Refuse names that DICOM would shorten, split or trim: the label would come back under another one.

    Raises:
        InputError: if there is one.
    """
    for name in masks:
        if not 0 < len(name) <= _MOST_LETTERS or "\\" in name or name != name.strip() or not name.isprintable():
            raise InputError(
                f"The segment {name!r} cannot be stored in a PACS: DICOM keeps {_MOST_LETTERS} letters without "
                "backslashes, line breaks or spaces at the ends (SegmentLabel). Rename the segment. Nothing was saved."
            )


def complete_headers(sources: Sequence[Dataset], image: Volume) -> list[Dataset]:
    """Copy headers with what a label object takes over from them, empty where it was taken out to make it anonymous.

    Raises:
        InputError: if an attribute is missing that nothing can stand for, or says whose image it is and is unreadable.
    """
    whole = [_complete_one(source, image) for source in sources]
    first = whole[0]
    stated = next((one.FrameOfReferenceUID for one in whole if one.get("FrameOfReferenceUID")), None)
    # highdicom asks for one. It must not change from save to save: viewers lay over each other what has the same.
    frame = stated or generate_uid(entropy_srcs=["frame of reference", first.StudyInstanceUID, first.SeriesInstanceUID])
    for one in whole:
        one.FrameOfReferenceUID = one.get("FrameOfReferenceUID") or frame
        for keyword in ("StudyInstanceUID", "PatientID"):
            if str(one[keyword].value) != str(first[keyword].value):
                raise InputError(
                    f"The images of the series differ in {keyword}: no DICOM segmentation belongs to both. Correct the "
                    "series in the PACS. Nothing was saved."
                )
    return whole


def _complete_one(source: Dataset, image: Volume) -> Dataset:
    whole = well_formed(source)
    for keyword in _NEEDED:
        if not whole.get(keyword):
            raise InputError(
                f"The images of the series have no {keyword} that can be read: no DICOM segmentation can refer to "
                "them. Correct the series in the PACS. Nothing was saved."
            )
    for keyword in (*_TAKEN_OVER, *IDENTITY):
        if keyword not in whole:
            setattr(whole, keyword, "")
        if keyword in IDENTITY and "\N{REPLACEMENT CHARACTER}" in str(whole[keyword].value):
            raise InputError(
                f"{keyword} of the series cannot be read: its characters are not of the set that SpecificCharacterSet "
                "names. Correct the series in the PACS. Nothing was saved."
            )
    whole.SpecificCharacterSet = "ISO_IR 192"  # That of the label, whose texts are decoded.
    if whole.PatientSex not in ("M", "F", "O"):
        whole.PatientSex = ""
    if not (whole.get("LossyImageCompressionRatio") and whole.get("LossyImageCompressionMethod")):
        whole.pop("LossyImageCompression", None)
    if "PerFrameFunctionalGroupsSequence" not in whole and not whole.get("SliceThickness"):
        whole.SliceThickness = f"{image.spacing[2]:.6g}"
    return whole


def _groups(dataset: Dataset, name: str) -> list[Dataset]:
    """A functional group of each frame: its own, or the one that all share."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
    return [(frame if name in frame else shared[0])[name][0] for frame in dataset.PerFrameFunctionalGroupsSequence]


def _frame_affines(dataset: Dataset) -> list[NDArray[np.float64]]:
    """For each frame the (4, 4) from [column, row, 0] to mm, RAS."""
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        return [_affine(dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.PixelSpacing)]
    groups = (
        _groups(dataset, name)
        for name in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
    )
    return [
        _affine(position.ImagePositionPatient, orientation.ImageOrientationPatient, measures.PixelSpacing)
        for position, orientation, measures in zip(*groups, strict=True)
    ]


def _affine(
    position: Sequence[float] | NDArray[np.float64],
    orientation: Sequence[float] | NDArray[np.float64],
    spacing: Sequence[float],
) -> NDArray[np.float64]:
    affine = np.eye(4)
    along = np.array(orientation, float).reshape(2, 3)
    affine[:3, 0], affine[:3, 1] = along[0] * float(spacing[1]), along[1] * float(spacing[0])
    affine[:3, 2] = np.cross(*along)
    affine[:3, 3] = position
    return np.asarray(_LPS_TO_RAS @ affine)


def _step(k: int) -> NDArray[np.float64]:
    """From a voxel to the one so many slices on, (4, 4)."""
    step = np.eye(4)
    step[2, 3] = k
    return step


def _depth(affine: NDArray[np.float64], image: Volume) -> float:
    """How far along the normal of the image's slices, in the direction of K, the first pixel of a frame lies, mm."""
    return float(image.slice_normal @ affine[:3, 3])


def _place(
    frame: NDArray[np.bool_], affine: NDArray[np.float64], image: Volume, depths: NDArray[np.float64]
) -> tuple[int, NDArray[np.bool_]]:
    """The slice across K that a frame (rows, columns) lies on, and the frame in the image's order, (I, J).

    Raises:
        InputError: if its pixels are not the voxels of a slice.
    """
    to_image = np.linalg.inv(image.affine) @ affine
    steps, start = to_image[:3, :2], to_image[:2, 3]
    away = np.abs(depths - _depth(affine, image))
    whole, index = np.rint(steps).astype(int), int(away.argmin())
    placed = frame.T
    fits = (np.abs(steps - whole) < _SAME_STEP).all() and np.abs(whole[:2]).sum(0).tolist() == [1, 1]
    fits = fits and not whole[2].any() and bool(whole[:2].any(1).all())
    fits = fits and away[index] < _SAME_PLACE * (np.diff(depths).min() if len(depths) > 1 else 1)
    if fits and whole[0, 0] == 0:  # Its columns run along J.
        placed, whole = placed.T, whole[:, ::-1]
    if fits:
        backwards = np.diag(whole[:2]) < 0
        placed = np.flip(placed, np.flatnonzero(backwards))
        # Of a straightened volume the frames are moved by whole pixels, and smaller than it is.
        first = start - np.where(backwards, np.array(placed.shape) - 1, 0)
        straight = bool((np.abs(first - np.rint(first)) < _SAME_PLACE).all())
        corner = np.rint(first).astype(int) if straight else round_half_up(first)
        fits = straight or placed.shape != image.shape[:2]
        placed, cut_off = _put(placed, corner, image.shape[:2])
        fits = fits and not cut_off
    if not fits:
        raise InputError(
            "The DICOM segmentation does not lie on the slices of its series: it belongs to another series, or was "
            "made at another resolution. Export it from the series that it shows."
        )
    return index, placed


def _put(pixels: NDArray[np.bool_], corner: NDArray[np.intp], shape: tuple[int, int]) -> tuple[NDArray[np.bool_], bool]:
    """Pixels at a corner of a slice of some shape, and whether some that are marked fall beside it."""
    placed = np.zeros(shape, bool)
    low, high = np.maximum(corner, 0), np.minimum(corner + pixels.shape, shape)
    if (high > low).all():
        (i0, j0), (i1, j1) = low - corner, high - corner
        placed[low[0] : high[0], low[1] : high[1]] = pixels[i0:i1, j0:j1]
    return placed, int(placed.sum()) != int(pixels.sum())
