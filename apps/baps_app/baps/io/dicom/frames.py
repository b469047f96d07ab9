"""Describe the frames of DICOM images: position, scaling of the values, and what distinguishes frames of one position.

A file of one slice is one frame. A file of many frames (Enhanced CT and MR, Legacy Converted, NM, ultrasound) holds for
each frame, in its functional groups, what a file of one slice holds in its header.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.uid import UID

from baps.errors import InputError
from baps.io.dicom.spacing import find_pixel_spacing
from baps.io.dicom.values import format_value, raw_text, read_numbers
from baps.utils.limits import check_size

DISTINGUISHING_KEYWORDS = (
    "TemporalPositionIndex",
    "TemporalPositionIdentifier",
    "TemporalPositionTimeOffset",
    "EchoNumbers",
    "EffectiveEchoTime",
    "EchoTime",
    "InversionTime",
    "InversionTimes",
    "DiffusionBValue",
    "DiffusionGradientOrientation",
    "NominalCardiacTriggerDelayTime",
    "NominalPercentageOfCardiacPhase",
    "TriggerTime",
    "ComplexImageComponent",
    "FrameType",
    "ImageType",
    "AcquisitionNumber",
    "ConvolutionKernel",
    "KVP",
    "FlipAngle",
    "RepetitionTime",
    "ContrastBolusAgentPhase",
    "ContrastBolusAgent",
    "FrameReferenceDateTime",
    "FrameReferenceTime",
    "FrameAcquisitionDateTime",
    "AcquisitionDateTime",
    "AcquisitionTime",
    "ContentTime",
    "SeriesTime",
    "ReconstructionDiameter",
    "EnergyWindowVector",
    "TimeSlotVector",
    "RRIntervalVector",
    "PhaseVector",
    "DetectorVector",
    "RotationVector",
)
"""Attributes that may distinguish frames of one position: time points, echoes, b-values, reconstructions."""

_VECTORS = tuple(name for name in DISTINGUISHING_KEYWORDS if name.endswith("Vector"))
"""Attributes of NM images with one number per frame."""

_POSITION_KEYWORDS = (
    "ImagePositionPatient",
    "ImagePositionVolume",
    "InStackPositionNumber",
    "StackID",
    "SliceLocation",
)
"""Attributes behind a dimension of an object that describe the position of a frame."""

HEADER_KEYWORDS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "InstanceNumber",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "BitsAllocated",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "EstimatedRadiographicMagnificationFactor",
    "PixelAspectRatio",
    "SequenceOfUltrasoundRegions",
    "SliceThickness",
    "SpacingBetweenSlices",
    "RescaleSlope",
    "RescaleIntercept",
    "StackID",
    "DetectorInformationSequence",
    "SliceVector",
    "DimensionIndexSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    *DISTINGUISHING_KEYWORDS,
)
"""Attributes that are read. No others are, so that no patient name can get into a message."""

_MAX_FRAMES = 65_536
"""Maximum number of frames of an object."""

_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_OTHER_IMAGE_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.30",  # Parametric Map Storage
    "1.2.840.10008.5.1.4.1.1.6.2",  # Enhanced US Volume Storage
)
_NON_IMAGE_PREFIX = "1.2.840.10008.5.1.4.1.1.66."
"""Prefix of the SOP classes of raw data, registrations, segmentations and surfaces; pydicom 2 does not know all."""


@dataclass(frozen=True)
class Frame:
    """Description of one frame.

    Attributes:
        file: name of its file, for messages.
        source: index of its object in the list that was read.
        index: index in its object, from 0.
        count: number of frames in its object.
        series: SeriesInstanceUID, empty in some anonymised files.
        number: InstanceNumber of its object, or 0.
        size: (columns, rows), pixels.
        channels: number of values per pixel; 3 for colour.
        itemsize: bytes per value.
        position: centre of the first pixel, mm (LPS), or None.
        orientation: directions in which columns and rows are counted, (2, 3), LPS, or None.
        spacing: distance of neighbouring columns and of neighbouring rows, mm, or None.
        spacing_note: source of the spacing if it is not PixelSpacing, or "".
        thickness: distance to the next slice according to the header, mm, or None.
        scale: slope and intercept of its values.
        stack: StackID, or "".
        distinctions: values by keyword that may distinguish it from a frame of the same position.
    """

    file: str
    source: int
    index: int
    count: int
    series: str
    number: int
    size: tuple[int, int]
    channels: int
    itemsize: int
    position: NDArray[np.float64] | None
    orientation: NDArray[np.float64] | None
    spacing: tuple[float, float] | None
    spacing_note: str
    thickness: float | None
    scale: tuple[float, float]
    stack: str = ""
    distinctions: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the file and, if it has several frames, number of the frame."""
        return self.file if self.count == 1 else f"frame {self.index + 1} of {self.file}"

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit normal of the plane of the frame, (3,), LPS."""
        assert self.orientation is not None
        normal = np.cross(*self.orientation)
        return normal / np.linalg.norm(normal)


def read_frames(header: Dataset, file: str, source: int = 0) -> list[Frame]:
    """Read the frames of an object.

    Args:
        header: the object, or its attributes in ``HEADER_KEYWORDS``.
        file: name of the object, for error messages.
        source: index of the object in the list that is read.

    Returns:
        The frames; none if the object is not an image.

    Raises:
        InputError: if an attribute cannot be used, or the object is a whole-slide image.
    """
    if not _is_image(header):
        return []
    if header.get("SOPClassUID") == _WHOLE_SLIDE:
        raise InputError(
            f"{file} is a whole-slide microscopy image (SOPClassUID {_WHOLE_SLIDE}), a pyramid of tiles and not a "
            "volume. Export the region that you need as PNG or TIFF."
        )
    rows, columns = _integer(header, "Rows", file), _integer(header, "Columns", file)
    if not rows or not columns:
        raise InputError(
            f"{file} does not say how many Rows and Columns it has: it is cut off or not an image. Export it again."
        )
    count = _integer(header, "NumberOfFrames", file, 1)
    if not 1 <= count <= _MAX_FRAMES:
        raise InputError(
            f"{file} has {count} frames (NumberOfFrames); 1 to {_MAX_FRAMES} are supported. Export it again."
        )
    channels, itemsize = (
        _integer(header, "SamplesPerPixel", file, 1),
        -(-_integer(header, "BitsAllocated", file, 16) // 8),
    )
    check_size(file, (columns, rows, count, channels), itemsize)
    shared = (_items(header, "SharedFunctionalGroupsSequence") or [Dataset()])[0]
    groups = _items(header, "PerFrameFunctionalGroupsSequence")
    if groups and len(groups) != count:
        raise InputError(
            f"{file} says that it has {count} frames (NumberOfFrames), but describes {len(groups)} of them "
            "(PerFrameFunctionalGroupsSequence). Export it again."
        )
    return [
        _frame(header, shared, groups[index] if groups else None, file, source, index, count) for index in range(count)
    ]


def _is_image(header: Dataset) -> bool:
    sop_class = UID(header.get("SOPClassUID") or "")
    if sop_class.startswith(_NON_IMAGE_PREFIX):
        return False
    if sop_class.name != sop_class:
        return "Image Storage" in sop_class.name or sop_class in _OTHER_IMAGE_CLASSES
    # What vendors store beside images has no Rows.
    return "Rows" in header or "SeriesInstanceUID" not in header


def _frame(
    header: Dataset, shared: Dataset, group: Dataset | None, file: str, source: int, index: int, count: int
) -> Frame:
    name = file if count == 1 else f"frame {index + 1} of {file}"
    channels, itemsize = (
        _integer(header, "SamplesPerPixel", file, 1),
        -(-_integer(header, "BitsAllocated", file, 16) // 8),
    )
    datasets = (*_groups(group or Dataset()), *_groups(shared), header)
    position = _find_numbers(datasets, ("ImagePositionPatient", "ImagePositionVolume"), 3, name)
    orientation = _find_numbers(datasets, ("ImageOrientationPatient", "ImageOrientationVolume"), 6, name)
    thickness = _find_numbers(datasets, ("SpacingBetweenSlices", "SliceThickness"), 1, name)
    if group is None and (count > 1 or position is None):
        position, orientation = _nuclear_position(header, index, count, file)
    if orientation is not None:
        orientation = orientation.reshape(2, 3)
        lengths = np.linalg.norm(orientation, axis=1)
        if not np.allclose(lengths, 1, atol=1e-2) or abs(orientation[0] @ orientation[1]) > 1e-2:
            raise InputError(
                f"The ImageOrientationPatient of {name} ({format_value(orientation)}) is not two perpendicular "
                "directions of length 1. Export it again."
            )
    spacing, note = find_pixel_spacing(datasets, name)
    slope = _find_numbers(datasets, ("RescaleSlope",), 1, name)
    if slope is not None and slope[0] == 0:
        raise InputError(f"The RescaleSlope of {name} is 0, so all its values are equal. Export it again.")
    intercept = _find_numbers(datasets, ("RescaleIntercept",), 1, name)
    return Frame(
        file=file,
        source=source,
        index=index,
        count=count,
        series=str(header.get("SeriesInstanceUID", "")),
        number=_integer(header, "InstanceNumber", file, 0, strict=False),
        size=(int(header.Columns), int(header.Rows)),
        channels=channels,
        itemsize=itemsize,
        position=position,
        orientation=orientation,
        spacing=spacing,
        spacing_note=note,
        thickness=abs(float(thickness[0])) or None if thickness is not None else None,
        scale=(1.0 if slope is None else float(slope[0]), 0.0 if intercept is None else float(intercept[0])),
        stack=next((str(dataset.StackID) for dataset in datasets if dataset.get("StackID")), ""),
        distinctions=_distinctions(header, group, index, count),
    )


def _nuclear_position(
    header: Dataset, index: int, count: int, file: str
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Return position and orientation of a frame of reconstructed NM slices; for other images neither.

    DICOM PS3.3, C.8.4.8 and C.8.4.11: the detector holds the position of the first slice, SliceVector the slice of each
    frame.

    Raises:
        InputError: if the slices have no positions.
    """
    slice_numbers = header.get("SliceVector") or ([1] if count == 1 else None)
    datasets = (*_items(header, "DetectorInformationSequence")[:1], header)
    image_type = header.get("ImageType") or []
    has_position = any("ImagePositionPatient" in dataset for dataset in datasets)
    if slice_numbers is None or not has_position or len(image_type) < 3 or not str(image_type[2]).startswith("RECON"):
        return None, None
    position = _find_numbers(datasets, ("ImagePositionPatient",), 3, file)
    orientation = _find_numbers(datasets, ("ImageOrientationPatient",), 6, file)
    step = _find_numbers((header,), ("SpacingBetweenSlices", "SliceThickness"), 1, file)
    if position is None or orientation is None or step is None:
        raise InputError(
            f"{file} holds reconstructed slices, but not their position (ImagePositionPatient and "
            "ImageOrientationPatient of DetectorInformationSequence, SpacingBetweenSlices). Export it again."
        )
    slice_numbers = np.atleast_1d(slice_numbers)
    if index >= len(slice_numbers):
        raise InputError(
            f"The SliceVector of {file} numbers {len(slice_numbers)} frames; there are more. Export it again."
        )
    normal = np.cross(*orientation.reshape(2, 3))
    return position + (int(slice_numbers[index]) - 1) * float(step[0]) * normal, orientation


def _groups(item: Dataset) -> Iterator[Dataset]:
    """Yield the first item of each functional group."""
    for element in item:
        if element.VR == "SQ" and element.value:
            yield element.value[0]


def _distinctions(header: Dataset, group: Dataset | None, index: int, count: int) -> dict[str, str]:
    distinctions = {
        name: str(header.get(name))
        for name in DISTINGUISHING_KEYWORDS
        if name not in _VECTORS and header.get(name) is not None
    }
    for name in _VECTORS:
        values = np.atleast_1d(header.get(name) if header.get(name) is not None else [])
        if len(values) == count:
            distinctions[name] = str(values[index])
    if group is not None:
        distinctions |= _distinctions_in(group, 3)
        pointers = _items(header, "DimensionIndexSequence")
        values = next(
            (item.get("DimensionIndexValues") for item in _groups(group) if "DimensionIndexValues" in item), None
        )
        for pointer, value in zip(pointers, np.atleast_1d([] if values is None else values), strict=False):
            name = keyword_for_tag(pointer.get("DimensionIndexPointer", 0)) or str(pointer.get("DimensionIndexPointer"))
            if name not in _POSITION_KEYWORDS:
                distinctions[f"index of {name}"] = str(value)
    if header.get("SOPInstanceUID") and count > 1:
        distinctions["SOPInstanceUID"] = str(header.SOPInstanceUID)
    return distinctions


def _distinctions_in(item: Dataset, depth: int) -> dict[str, str]:
    distinctions: dict[str, str] = {}
    for element in item:
        if element.VR == "SQ":
            if depth and element.value:
                distinctions |= _distinctions_in(element.value[0], depth - 1)
        elif element.keyword in DISTINGUISHING_KEYWORDS:
            distinctions[element.keyword] = str(element.value)
    return distinctions


def _items(header: Dataset, keyword: str) -> Sequence[Dataset]:
    items: Sequence[Dataset] = header.get(keyword) or []
    return items


def _find_numbers(
    datasets: Sequence[Dataset], keywords: Sequence[str], count: int, name: str
) -> NDArray[np.float64] | None:
    """Return the numbers of the first attribute that is present."""
    for keyword in keywords:
        for dataset in datasets:
            values = read_numbers(dataset, keyword, count, name)
            if values is not None:
                return values
    return None


def _integer(header: Dataset, keyword: str, file: str, default: int = 0, strict: bool = True) -> int:
    try:
        value = header.get(keyword)
    except (TypeError, ValueError, OverflowError):
        value = raw_text(header, keyword)
    if value in (None, ""):
        return default
    try:
        number = float(value)
        if strict and number != int(number):
            raise ValueError
        return int(number)
    except (TypeError, ValueError, OverflowError):
        if not strict:
            return default
        raise InputError(
            f"The {keyword} of {file} is {format_value(raw_text(header, keyword))}; it must be a whole number. "
            "Export it again."
        ) from None
