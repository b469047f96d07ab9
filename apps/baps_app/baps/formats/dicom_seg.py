"""DICOM Segmentation objects (SEG), read and written with highdicom.

A frame of the object is one segment on one slice. Slices without a frame say nothing of the segment: nobody looked
there; a frame in which nothing is marked says that it is not there.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from zlib import crc32

import numpy as np
from highdicom import UID, AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from ..errors import InputError
from ..volume import Volume
from .dicom_header import IDENTITY, well_formed

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
    corrected it (a segment that is ``AUTOMATIC`` was seen by none)."""
    return {
        int(segment.SegmentNumber): (
            str(segment.get("SegmentLabel", "")).strip(),
            str(segment.get("SegmentAlgorithmType", "")) != SegmentAlgorithmTypeValues.AUTOMATIC.value,
        )
        for segment in dataset.get("SegmentSequence", [])
    }


def slice_depths(headers: Sequence[Dataset], image: Volume) -> NDArray[np.float64]:
    """How far along the normal each slice lies, mm, in the order of K; the step between slices may vary a little.

    Args:
        headers: of the images of a series, one a slice, or one multi-frame image; in any order.
        image: the volume that they make.

    Raises:
        InputError: if they do not make it, or say nothing of where they lie.
    """
    return np.sort(_depths(headers, image))


def _depths(headers: Sequence[Dataset], image: Volume) -> list[float]:
    """As ``slice_depths``, in the order of the headers and their frames."""
    try:
        depths = [_depth(affine, image) for header in headers for affine in _frame_affines(header)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError("The images of the series do not say where they lie: no DICOM segmentation fits.") from error
    if len(depths) != image.shape[2]:
        raise InputError(f"The series has {len(depths)} slices, its volume {image.shape[2]}. Fetch the series again.")
    return depths


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
        depths = np.array([_depth(image.affine @ _step(k), image) for k in range(image.shape[2])])
    try:
        groups = _groups(dataset, "SegmentIdentificationSequence")
        for frame, group in zip(dataset.PerFrameFunctionalGroupsSequence, groups, strict=True):
            frame.SegmentIdentificationSequence = [group]  # highdicom looks for it there alone.
        segmentation = Segmentation.from_dataset(dataset, copy=False)
        pixels = np.atleast_3d(segmentation.pixel_array.T).T  # One frame comes without its axis.
        if segmentation.segmentation_type != SegmentationTypeValues.BINARY:
            pixels = pixels > segmentation.MaximumFractionalValue / 2
        affines, said = _frame_affines(segmentation), segments_said(segmentation)
        names = [said[int(group.ReferencedSegmentNumber)][0] for group in groups]
    except Exception as error:  # highdicom and pydicom raise many kinds; each means a broken or foreign object.
        raise InputError(f"The DICOM segmentation cannot be read ({type(error).__name__}). Export it again.") from error
    for name in dict.fromkeys(names):
        mask, slices = np.zeros(image.shape, bool), set()
        for frame, affine, named in zip(pixels, affines, names, strict=True):
            if named == name:
                index, placed = _place(frame.astype(bool), affine, image, depths)
                mask[:, :, index] |= placed
                slices.add(index)
        yield Segment(name, mask, frozenset(slices))


def write_segmentation(
    sources: Sequence[Dataset],
    image: Volume,
    masks: Mapping[str, NDArray[np.bool_]],
    slices: Mapping[str, frozenset[int]],
    when: datetime,
    author: str = "",
    by_model: bool = False,
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

    What is malformed in the headers is left out. Patient and study are taken over exactly. Where the images name no
    frame of reference, the SEG gets one that is always the same for the series.

    Raises:
        InputError: if the images do not make the volume or lack what a SEG needs, or if DICOM cannot hold a name.
    """
    _check_names(masks)
    indices = np.argsort(np.argsort(_depths(sources, image))).tolist()
    sources = _complete(sources, image)
    shown = {name: slices[name] | set(np.flatnonzero(mask.any((0, 1))).tolist()) for name, mask in masks.items()}
    same = len(set(map(frozenset, shown.values()))) == 1
    wanted = set().union(*shown.values())
    try:
        if len(sources) > 1:
            chosen = [(source, k) for source, k in zip(sources, indices, strict=True) if k in wanted]
            sources, indices = [source for source, _ in chosen], [k for _, k in chosen]
        else:
            same = same and wanted == set(indices)
        pixels = np.stack([mask[:, :, indices].transpose(2, 1, 0) for mask in masks.values()], -1)
        segmentation = Segmentation(
            source_images=sources,
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
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # Which may quote what nobody should read.
        raise InputError(
            "No DICOM segmentation can be made for this series: its header lacks what one needs "
            f"({type(error).__name__}). Save the label as a file instead."
        ) from error
    segmentation.SpecificCharacterSet = "ISO_IR 192"  # Unicode, for names of patients and labels.
    segmentation.SeriesDescription = f"{_NAME}: {', '.join(masks)}"[:64]
    segmentation.ContentDate = segmentation.SeriesDate = when.strftime("%Y%m%d")
    segmentation.ContentTime = segmentation.SeriesTime = when.strftime("%H%M%S.%f")
    segmentation.TimezoneOffsetFromUTC = when.strftime("%z")
    return segmentation


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


def _complete(sources: Sequence[Dataset], image: Volume) -> list[Dataset]:
    """Copies of headers with what a SEG takes over from them, empty where it was taken out to make it anonymous.

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


def _affine(position: Sequence[float], orientation: Sequence[float], spacing: Sequence[float]) -> NDArray[np.float64]:
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
    normal = np.cross(image.affine[:3, 0], image.affine[:3, 1])
    normal *= np.sign(normal @ image.affine[:3, 2]) / np.linalg.norm(normal)
    return float(normal @ affine[:3, 3])


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
        corner = np.where(backwards, np.array(image.shape[:2]) - 1, 0)
        fits = placed.shape == image.shape[:2] and bool((np.abs(start - corner) < _SAME_PLACE).all())
    if not fits:
        raise InputError(
            "The DICOM segmentation does not lie on the slices of its series: it belongs to another series, or was "
            "made at another resolution. Export it from the series that it shows."
        )
    return index, placed
