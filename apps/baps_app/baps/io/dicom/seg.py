"""Read and write DICOM Segmentation objects (SEG) with highdicom.

A frame of the object is one segment on one slice. In a Label Map Segmentation, which highdicom 0.22 does not know, a
frame is all segments on one slice, and a pixel holds the number of its segment. A slice without a frame says nothing
about the segment: nobody looked there. A frame without marked pixels says that the segment is absent.
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
from baps.io.dicom.header import IDENTITY_KEYWORDS, keep_well_formed
from baps.io.dicom.pixels import decode_rle
from baps.io.dicom.stacks import Stack, find_stack, round_half_up
from baps.utils.limits import check_size

# These warnings quote names that are not in DICOM's form, and would end up in the log.
warnings.filterwarnings("ignore", module=r"highdicom\.valuerep")

_NAME = "BAPS"
_STRUCTURE = Code("123037004", "SCT", "Anatomical Structure")
_LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])

_COPIED_KEYWORDS = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator",
)  # fmt: skip
"""Attributes that a SEG copies from its images."""

_REQUIRED_KEYWORDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Rows", "Columns")
"""Attributes that an image must have so that a SEG can refer to it."""

_MAX_NAME_LENGTH = 64
"""Maximum number of characters in the name of a segment."""

_STEP_TOLERANCE = 0.02
"""Maximum difference between the steps within a frame and those of the image, as a share of a voxel."""

_MAX_SHIFT = 0.1
"""Maximum shift of a frame, as a share of a voxel, because headers round positions."""


@dataclass(frozen=True)
class Segment:
    """One segment, in the voxel order of the image that it belongs to.

    Attributes:
        name: label of the segment.
        mask: mask, (I, J, K).
        slices: indices along K of the slices for which the object has a frame.
    """

    name: str
    mask: NDArray[np.bool_]
    slices: frozenset[int]


def describe_segments(dataset: Dataset) -> dict[int, tuple[str, bool]]:
    """Describe the segments in a SEG, or in its metadata alone.

    The background of a Label Map Segmentation, number 0, is left out.

    Args:
        dataset: the object.

    Returns:
        By number the label, and whether a person drew or corrected the segment (nobody has seen an ``AUTOMATIC`` one).
    """
    return {
        int(segment.SegmentNumber): (
            str(segment.get("SegmentLabel", "")).strip(),
            str(segment.get("SegmentAlgorithmType", "")) != SegmentAlgorithmTypeValues.AUTOMATIC.value,
        )
        for segment in dataset.get("SegmentSequence", [])
        if int(segment.SegmentNumber)
    }


def slice_depths(headers: Sequence[Dataset], image: Volume, number: int | None = None) -> NDArray[np.float64]:
    """Compute the position of each slice along the normal; the step between slices may vary a little.

    Args:
        headers: headers of the images of a series, one per slice, or one multi-frame image; in any order.
        image: the volume that they make.
        number: number of the volume, from 1, if they make several.

    Returns:
        Positions in mm, in the order of K, (K,).

    Raises:
        InputError: if the images do not make the volume, or have no positions.
    """
    stack = find_stack(headers, image, number)
    return np.array([frame.position for frame in stack.frames]) @ stack.frames[0].normal


def even_depths(image: Volume) -> NDArray[np.float64]:
    """Compute the position of each slice along the normal, for evenly spaced slices.

    Args:
        image: the volume.

    Returns:
        Positions in mm, in the order of K, (K,).
    """
    return np.array([_depth(image.affine @ _step(k), image) for k in range(image.shape[2])])


def source_frames(
    headers: Sequence[Dataset], image: Volume, number: int | None = None
) -> dict[int, tuple[Dataset, int, NDArray[np.float64]]]:
    """Find the image that each slice of a volume was read from.

    Args:
        headers: see ``slice_depths``.
        image: see ``slice_depths``.
        number: see ``slice_depths``.

    Returns:
        For each index along K the header, the number of its frame from 1, and the (4, 4) from [i, j, 0] of the volume
        to the position of that frame's pixels, mm (RAS). In a straightened volume this is up to half a pixel beside the
        voxels.

    Raises:
        InputError: see ``slice_depths``.
    """
    frames = {}
    stack = find_stack(headers, image, number)
    for k, (frame, offset) in enumerate(zip(stack.frames, stack.offsets, strict=True)):
        assert frame.position is not None and frame.orientation is not None
        affine = _affine(frame.position, frame.orientation.ravel(), (frame.spacing or (1.0, 1.0))[::-1])
        affine[:3, 3] -= affine[:3, :2] @ offset
        frames[k] = headers[frame.source], frame.index + 1, affine
    return frames


def source_references(dataset: Dataset) -> set[tuple[str, int]]:
    """Read which images a SEG was drawn on.

    Args:
        dataset: the object.

    Returns:
        SOPInstanceUIDs with numbers of frames, which start at 1 and are 0 for images of a single frame.
    """
    return {
        (str(source.ReferencedSOPInstanceUID), int(frame))
        for group in dataset.get("PerFrameFunctionalGroupsSequence") or []
        for derivation in group.get("DerivationImageSequence") or []
        for source in derivation.get("SourceImageSequence") or []
        for frame in np.atleast_1d(source.get("ReferencedFrameNumber") or 0)
    }


def stack_references(headers: Sequence[Dataset], image: Volume, number: int) -> set[tuple[str, int]]:
    """Find the images that one volume of several was read from.

    Args:
        headers: see ``slice_depths``.
        image: see ``slice_depths``.
        number: see ``slice_depths``.

    Returns:
        The images in the form of ``source_references``.
    """
    frames = find_stack(headers, image, number).frames
    return {(str(headers[item.source].SOPInstanceUID), item.index + 1 if item.count > 1 else 0) for item in frames}


def read_segmentation(dataset: Dataset, image: Volume, depths: NDArray[np.float64] | None = None) -> Iterator[Segment]:
    """Read a SEG label by label. Segments of the same label are merged.

    Args:
        dataset: the object. In a fractional SEG, more than half counts as marked.
        image: the volume that it belongs to.
        depths: positions of its slices, see ``slice_depths``; None for even spacing.

    Yields:
        Each label, in the voxel order of the image.

    Raises:
        InputError: if the object cannot be read, or its frames do not lie on the voxels of the image.
    """
    if depths is None:
        depths = even_depths(image)
    try:
        _check_pixels(dataset)
        segments, affines = describe_segments(dataset), _frame_affines(dataset)
        pixels, numbers = _label_map(dataset, segments) if _is_label_map(dataset) else _segment_frames(dataset)
        named: dict[str, list[int]] = {}
        for number in segments:
            if any(number in frame for frame in numbers):
                named.setdefault(segments[number][0], []).append(number)
    except InputError:
        raise
    except Exception as error:  # highdicom and pydicom raise many types; each means a broken or foreign object.
        raise InputError(f"The DICOM segmentation cannot be read ({type(error).__name__}). Export it again.") from error
    for name, own in named.items():
        mask, slices = np.zeros(image.shape, bool), set()
        for frame, affine, present in zip(pixels, affines, numbers, strict=True):
            if present.isdisjoint(own):
                continue
            marked = np.isin(frame, own) if _is_label_map(dataset) else frame.astype(bool)
            index, placed = _locate(marked, affine, image, depths)
            mask[:, :, index] |= placed
            slices.add(index)
        yield Segment(name, mask, frozenset(slices))


def _check_pixels(dataset: Dataset) -> None:
    """Refuse frames that need more memory than the limit, or that differ from the header."""
    count, size = int(dataset.get("NumberOfFrames") or 1), (int(dataset.Rows), int(dataset.Columns), 1)
    check_size("The DICOM segmentation", (count, *size), -(-int(dataset.BitsAllocated) // 8))
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
        check_frames("The DICOM segmentation", dataset.PixelData, str(syntax), count, size)


def _is_label_map(dataset: Dataset) -> bool:
    return str(dataset.get("SegmentationType", "")) == "LABELMAP"


def _segment_frames(dataset: Dataset) -> tuple[NDArray[Any], list[set[int]]]:
    """Return the frames of a SEG, (F, rows, columns), and the number of the segment of each."""
    groups = _groups(dataset, "SegmentIdentificationSequence")
    pixels = _pixels(dataset)
    if dataset.SegmentationType != SegmentationTypeValues.BINARY.value:
        pixels = pixels > dataset.MaximumFractionalValue / 2
    return pixels, [{int(group.ReferencedSegmentNumber)} for group in groups]


def _label_map(dataset: Dataset, segments: Mapping[int, object]) -> tuple[NDArray[Any], list[set[int]]]:
    """Return the frames of a label map, (F, rows, columns), in which every frame shows every segment."""
    pixels = _pixels(dataset)
    if unnamed := {int(number) for number in np.unique(pixels)} - {0, *segments, dataset.get("PixelPaddingValue", 0)}:
        raise InputError(
            f"The DICOM segmentation has pixels of the segments {sorted(unnamed)}, which its SegmentSequence does not "
            "name. Export it again."
        )
    return pixels, [set(segments)] * len(pixels)


def _pixels(dataset: Dataset) -> NDArray[Any]:
    """Decode the frames, (F, rows, columns)."""
    if dataset.file_meta.TransferSyntaxUID == RLELossless:
        return decode_rle(dataset, "The DICOM segmentation")
    try:
        pixels = dataset.pixel_array
    except (NotImplementedError, RuntimeError) as error:  # There is no decoder.
        syntax = dataset.file_meta.TransferSyntaxUID.name
        raise InputError(
            f"The DICOM segmentation is compressed as {syntax}, which cannot be decoded here. Export it uncompressed."
        ) from error
    return pixels if pixels.ndim == 3 else pixels[None]  # A single frame has no frame axis.


def _missing_attribute(error: Exception) -> str:
    """Return the attribute that an error is about, or the error's type; not its text, which may quote patient data."""
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
    """Make a SEG with one segment for each mask, in a new series of the same study.

    Malformed elements of the headers are left out. Patient and study are copied exactly. If the images have no frame of
    reference, the SEG gets one that is always the same for the series.

    Args:
        sources: the images of the series without pixels, one per slice, or one multi-frame image; in any order.
        image: the volume that they make.
        masks: masks by label, (I, J, K); they may overlap.
        slices: by label the indices along K at which a person looked for it; slices with a mark are always included. If
            all labels have the same slices, frames without a mark are written too; else they are omitted.
        when: time of creation, with a time zone.
        author: name of the responsible person.
        by_model: whether a model made the masks and a person confirmed them.
        number: number of the volume, from 1, if the images make several.

    Returns:
        The SEG.

    Raises:
        InputError: if the images do not make the volume or lack what a SEG needs, if DICOM cannot store a name, or if
            voxels are marked where the slices of a straightened volume have no pixels.
    """
    _check_names(masks)
    stack = find_stack(sources, image, number)
    sources = complete_headers(sources, image)
    shown_slices = {name: slices[name] | set(np.flatnonzero(mask.any((0, 1))).tolist()) for name, mask in masks.items()}
    same = len(set(map(frozenset, shown_slices.values()))) == 1
    slice_indices = sorted(set().union(*shown_slices.values()))
    try:
        pixels = np.stack([_source_pixels(name, mask, stack, slice_indices) for name, mask in masks.items()], -1)
        frames = [stack.frames[k] for k in slice_indices]
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
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # Its text may quote patient data.
        raise InputError(
            "A DICOM segmentation cannot be made for this series: its header lacks a required attribute "
            f"({_missing_attribute(error)}). Save the label as a file instead."
        ) from error
    if frames[0].count > 1:
        _number_source_frames(segmentation, frames)
    segmentation.SpecificCharacterSet = "ISO_IR 192"  # Unicode, for the names of patients and labels.
    segmentation.SeriesDescription = f"{_NAME}: {', '.join(masks)}"[:64]
    segmentation.ContentDate = segmentation.SeriesDate = when.strftime("%Y%m%d")
    segmentation.ContentTime = segmentation.SeriesTime = when.strftime("%H%M%S.%f")
    segmentation.TimezoneOffsetFromUTC = when.strftime("%z")
    return segmentation


def _source_pixels(name: str, mask: NDArray[np.bool_], stack: Stack, slice_indices: Sequence[int]) -> NDArray[np.bool_]:
    """Return the pixels (frames, rows, columns) of the source frames under a mask (I, J, K) of the volume."""
    columns, rows = stack.frames[0].size
    pixels = np.stack([mask[i : i + columns, j : j + rows, k].T for k in slice_indices for i, j in [stack.offsets[k]]])
    if outside := int(mask.sum() - pixels.sum()):
        raise InputError(
            f"{outside} voxels of {name} lie outside the slices as they were scanned, where the straightened volume "
            "was padded. Erase them there. Nothing was saved."
        )
    return pixels


def _source_images(sources: Sequence[Dataset], frames: Sequence[Frame]) -> list[Dataset]:
    """Return the headers of frames: one each, or one multi-frame header that is reduced to them."""
    if frames[0].count == 1:
        return [sources[frame.source] for frame in frames]
    objects = {frame.source for frame in frames}
    header = sources[frames[0].source]
    if len(objects) > 1 or "PerFrameFunctionalGroupsSequence" not in header:
        raise InputError(
            "A DICOM segmentation cannot be made for this series: a volume of it is spread over several objects of "
            "many frames, or its frames have no PerFrameFunctionalGroupsSequence. Save the label as a file instead."
        )
    reduced, shared = Dataset(), Dataset()
    reduced.update(header)
    shared.update((header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0])
    groups = [header.PerFrameFunctionalGroupsSequence[frame.index] for frame in frames]
    for name in ("PlaneOrientationSequence", "PixelMeasuresSequence"):  # All frames of a volume have the same.
        if name not in shared and name in groups[0]:
            setattr(shared, name, groups[0][name].value)
    reduced.SharedFunctionalGroupsSequence, reduced.PerFrameFunctionalGroupsSequence = [shared], groups
    reduced.NumberOfFrames = len(groups)
    return [reduced]


def _number_source_frames(segmentation: Dataset, frames: Sequence[Frame]) -> None:
    """Let a SEG refer to frames by their numbers in the whole object."""
    groups = segmentation.PerFrameFunctionalGroupsSequence
    derivations = [entry for group in groups for entry in group.get("DerivationImageSequence") or []]
    # Frames of several segments may share one source item.
    for source in {id(item): item for entry in derivations for item in entry.SourceImageSequence}.values():
        if "ReferencedFrameNumber" in source:
            source.ReferencedFrameNumber = frames[int(source.ReferencedFrameNumber) - 1].index + 1


def _description(number: int, name: str, by_model: bool) -> SegmentDescription:
    organ = "".join(word.capitalize() for word in name.replace("_", " ").split())
    try:
        code = getattr(codes.SCT, organ)
    except (AttributeError, RuntimeError):  # Unknown or ambiguous.
        code = _STRUCTURE
    algorithm_type, algorithm = SegmentAlgorithmTypeValues.MANUAL, None
    if by_model:
        algorithm_type = SegmentAlgorithmTypeValues.SEMIAUTOMATIC
        algorithm = AlgorithmIdentificationSequence(_NAME, codes.DCM.ArtificialIntelligence, version("baps-monailabel"))
    description = SegmentDescription(number, name, _STRUCTURE, code, algorithm_type, algorithm)
    hue = crc32(name.encode()) / (1 << 32) * 2 * np.pi  # A segment of this name always has the same colour.
    description.RecommendedDisplayCIELabValue = list(CIELabColor(65, 60 * np.cos(hue), 60 * np.sin(hue)).value)
    return description


def _check_names(masks: Mapping[str, object]) -> None:
    """Refuse names that DICOM would shorten, split or trim, because the label would come back under another name."""
    for name in masks:
        if not 0 < len(name) <= _MAX_NAME_LENGTH or "\\" in name or name != name.strip() or not name.isprintable():
            raise InputError(
                f"The segment {name!r} cannot be stored in a PACS: DICOM allows {_MAX_NAME_LENGTH} characters without "
                "backslashes, line breaks or spaces at the ends (SegmentLabel). Rename the segment. Nothing was saved."
            )


def complete_headers(sources: Sequence[Dataset], image: Volume) -> list[Dataset]:
    """Copy headers, and complete what a label object copies from them.

    Attributes that anonymisation removed become empty.

    Args:
        sources: headers of the images of a series.
        image: the volume that they make.

    Returns:
        The copies.

    Raises:
        InputError: if a required attribute is missing, or one that identifies the patient is unreadable.
    """
    completed = [_complete_one(source, image) for source in sources]
    first = completed[0]
    stated = next((item.FrameOfReferenceUID for item in completed if item.get("FrameOfReferenceUID")), None)
    # highdicom requires one. It must not change from save to save, because viewers overlay what shares one.
    frame = stated or generate_uid(entropy_srcs=["frame of reference", first.StudyInstanceUID, first.SeriesInstanceUID])
    for item in completed:
        item.FrameOfReferenceUID = item.get("FrameOfReferenceUID") or frame
        for keyword in ("StudyInstanceUID", "PatientID"):
            if str(item[keyword].value) != str(first[keyword].value):
                raise InputError(
                    f"The images of the series differ in {keyword}: no DICOM segmentation belongs to both. Correct the "
                    "series in the PACS. Nothing was saved."
                )
    return completed


def _complete_one(source: Dataset, image: Volume) -> Dataset:
    header = keep_well_formed(source)
    for keyword in _REQUIRED_KEYWORDS:
        if not header.get(keyword):
            raise InputError(
                f"The images of the series have no {keyword} that can be read: no DICOM segmentation can refer to "
                "them. Correct the series in the PACS. Nothing was saved."
            )
    for keyword in (*_COPIED_KEYWORDS, *IDENTITY_KEYWORDS):
        if keyword not in header:
            setattr(header, keyword, "")
        if keyword in IDENTITY_KEYWORDS and "\N{REPLACEMENT CHARACTER}" in str(header[keyword].value):
            raise InputError(
                f"{keyword} of the series cannot be read: its characters are not in the SpecificCharacterSet that it "
                "names. Correct the series in the PACS. Nothing was saved."
            )
    header.SpecificCharacterSet = "ISO_IR 192"  # The texts of the label are decoded.
    if header.PatientSex not in ("M", "F", "O"):
        header.PatientSex = ""
    if not (header.get("LossyImageCompressionRatio") and header.get("LossyImageCompressionMethod")):
        header.pop("LossyImageCompression", None)
    if "PerFrameFunctionalGroupsSequence" not in header and not header.get("SliceThickness"):
        header.SliceThickness = f"{image.spacing[2]:.6g}"
    return header


def _groups(dataset: Dataset, name: str) -> list[Dataset]:
    """Return a functional group for each frame: its own, or the shared one."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
    return [(frame if name in frame else shared[0])[name][0] for frame in dataset.PerFrameFunctionalGroupsSequence]


def _frame_affines(dataset: Dataset) -> list[NDArray[np.float64]]:
    """Return for each frame the (4, 4) from [column, row, 0] to mm (RAS)."""
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
    """Return the (4, 4) that shifts a voxel by a number of slices."""
    step = np.eye(4)
    step[2, 3] = k
    return step


def _depth(affine: NDArray[np.float64], image: Volume) -> float:
    """Return the position of a frame's first pixel along the normal of the image's slices, mm."""
    return float(image.slice_normal @ affine[:3, 3])


def _locate(
    frame: NDArray[np.bool_], affine: NDArray[np.float64], image: Volume, depths: NDArray[np.float64]
) -> tuple[int, NDArray[np.bool_]]:
    """Return the slice along K that a frame (rows, columns) lies on, and the frame in the image's order, (I, J)."""
    to_image = np.linalg.inv(image.affine) @ affine
    steps, origin = to_image[:3, :2], to_image[:2, 3]
    distances = np.abs(depths - _depth(affine, image))
    whole, index = np.rint(steps).astype(int), int(distances.argmin())
    placed = frame.T
    fits = (np.abs(steps - whole) < _STEP_TOLERANCE).all() and np.abs(whole[:2]).sum(0).tolist() == [1, 1]
    fits = fits and not whole[2].any() and bool(whole[:2].any(1).all())
    fits = fits and distances[index] < _MAX_SHIFT * (np.diff(depths).min() if len(depths) > 1 else 1)
    if fits and whole[0, 0] == 0:  # The columns of the frame run along J.
        placed, whole = placed.T, whole[:, ::-1]
    if fits:
        backwards = np.diag(whole[:2]) < 0
        placed = np.flip(placed, np.flatnonzero(backwards))
        # Frames of a straightened volume are shifted by whole pixels, and are smaller than the volume.
        first = origin - np.where(backwards, np.array(placed.shape) - 1, 0)
        aligned = bool((np.abs(first - np.rint(first)) < _MAX_SHIFT).all())
        corner = np.rint(first).astype(int) if aligned else round_half_up(first)
        fits = aligned or placed.shape != image.shape[:2]
        placed, cut_off = _paste(placed, corner, image.shape[:2])
        fits = fits and not cut_off
    if not fits:
        raise InputError(
            "The DICOM segmentation does not lie on the slices of its series: it belongs to another series, or was "
            "made at another resolution. Export it from the series that it segments."
        )
    return index, placed


def _paste(
    pixels: NDArray[np.bool_], corner: NDArray[np.intp], shape: tuple[int, int]
) -> tuple[NDArray[np.bool_], bool]:
    """Paste pixels into a slice at a corner, and return whether marked pixels fall outside."""
    placed = np.zeros(shape, bool)
    low, high = np.maximum(corner, 0), np.minimum(corner + pixels.shape, shape)
    if (high > low).all():
        (i0, j0), (i1, j1) = low - corner, high - corner
        placed[low[0] : high[0], low[1] : high[1]] = pixels[i0:i1, j0:j1]
    return placed, int(placed.sum()) != int(pixels.sum())
