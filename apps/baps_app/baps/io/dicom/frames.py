"""The frames of DICOM images: where each one lies, how its values are scaled, and what tells it from others.

A file of one slice is one frame. A file of many (Enhanced CT and MR, Legacy Converted, NM, ultrasound) says for each
frame, in its functional groups, what a file of one slice says in its header.
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
from baps.io.dicom.spacing import pixel_spacing
from baps.io.dicom.values import numbers, raw_text, shown
from baps.utils.limits import check_size

DISTINCTIONS = (
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
"""Attributes that may tell apart frames of the same place: time points, echoes, b-values, reconstructions."""

_VECTORS = tuple(name for name in DISTINCTIONS if name.endswith("Vector"))
"""Of NM images: one number for each frame."""

_PLACES = ("ImagePositionPatient", "ImagePositionVolume", "InStackPositionNumber", "StackID", "SliceLocation")
"""What a dimension of an object may point to that says where a frame lies."""

HEADER = (
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
    *DISTINCTIONS,
)
"""Attributes that are read. Nothing else is, so that no name of a patient can get into a message."""

_MOST_FRAMES = 65_536
"""Of one object."""

_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_IMAGES_BY_OTHER_NAMES = (
    "1.2.840.10008.5.1.4.1.1.30",  # Parametric Map Storage
    "1.2.840.10008.5.1.4.1.1.6.2",  # Enhanced US Volume Storage
)
_NO_IMAGES = "1.2.840.10008.5.1.4.1.1.66."
"""Where the SOP classes of raw data, registrations, segmentations and surfaces begin; pydicom 2 does not know all."""


@dataclass(frozen=True)
class Frame:
    """What is said of one frame.

    Attributes:
        file: name of its file, for messages.
        source: index of its object in the list that was read.
        index: in its object, from 0.
        count: of frames in its object.
        series: SeriesInstanceUID, empty in some anonymised files.
        number: InstanceNumber of its object, or 0.
        size: (columns, rows).
        channels: 3 of colour.
        itemsize: bytes of a value.
        position: of the centre of the first pixel, mm, LPS; or None.
        orientation: (2, 3) directions in which the columns and the rows are counted, LPS; or None.
        spacing: distance of neighbouring columns and rows, mm; or None.
        spacing_note: where the spacing comes from, if it is not PixelSpacing; or "".
        thickness: distance to the next slice as the header says it, mm; or None.
        scale: slope and intercept of its values.
        stack: StackID, or "".
        distinctions: by keyword, what may tell it from a frame of the same place.
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
        """The file, and of several frames which one."""
        return self.file if self.count == 1 else f"frame {self.index + 1} of {self.file}"

    @property
    def normal(self) -> NDArray[np.float64]:
        """Of its plane, LPS, length 1."""
        assert self.orientation is not None
        normal = np.cross(*self.orientation)
        return normal / np.linalg.norm(normal)


def frames_of(header: Dataset, file: str, source: int = 0) -> list[Frame]:
    """Read the frames of an object; none if it is no image.

    Args:
        header: the object, or its attributes named in ``HEADER``.
        file: its name, for messages.
        source: its index in the list that is read.

    Raises:
        InputError: if an attribute cannot be used; it is named. Also for a whole-slide image, which is no volume.
    """
    if not _is_image(header):
        return []
    if header.get("SOPClassUID") == _WHOLE_SLIDE:
        raise InputError(
            f"{file} is a whole-slide microscopy image (SOPClassUID {_WHOLE_SLIDE}), a pyramid of tiles and no volume. "
            "Export the region that you need as PNG or TIFF."
        )
    rows, columns = _whole(header, "Rows", file), _whole(header, "Columns", file)
    if not rows or not columns:
        raise InputError(
            f"{file} does not say how many Rows and Columns it has: it is cut off, or no image. Export it again."
        )
    count = _whole(header, "NumberOfFrames", file, 1)
    if not 1 <= count <= _MOST_FRAMES:
        raise InputError(f"{file} has {count} frames (NumberOfFrames); 1 to {_MOST_FRAMES} are read. Export it again.")
    channels, itemsize = _whole(header, "SamplesPerPixel", file, 1), -(-_whole(header, "BitsAllocated", file, 16) // 8)
    check_size(file, (columns, rows, count, channels), itemsize)
    shared = (_items(header, "SharedFunctionalGroupsSequence") or [Dataset()])[0]
    groups = _items(header, "PerFrameFunctionalGroupsSequence")
    if groups and len(groups) != count:
        raise InputError(
            f"{file} says that it has {count} frames (NumberOfFrames), and describes {len(groups)} of them "
            "(PerFrameFunctionalGroupsSequence). Export it again."
        )
    return [
        _frame(header, shared, groups[index] if groups else None, file, source, index, count) for index in range(count)
    ]


def _is_image(header: Dataset) -> bool:
    kind = UID(header.get("SOPClassUID") or "")
    if kind.startswith(_NO_IMAGES):
        return False
    if kind.name != kind:
        return "Image Storage" in kind.name or kind in _IMAGES_BY_OTHER_NAMES
    # What a vendor keeps beside its images has no Rows.
    return "Rows" in header or "SeriesInstanceUID" not in header


def _frame(
    header: Dataset, shared: Dataset, group: Dataset | None, file: str, source: int, index: int, count: int
) -> Frame:
    name = file if count == 1 else f"frame {index + 1} of {file}"
    channels, itemsize = _whole(header, "SamplesPerPixel", file, 1), -(-_whole(header, "BitsAllocated", file, 16) // 8)
    where = (*_groups(group or Dataset()), *_groups(shared), header)
    position = _first(where, ("ImagePositionPatient", "ImagePositionVolume"), 3, name)
    orientation = _first(where, ("ImageOrientationPatient", "ImageOrientationVolume"), 6, name)
    thickness = _first(where, ("SpacingBetweenSlices", "SliceThickness"), 1, name)
    if group is None and (count > 1 or position is None):
        position, orientation = _nuclear_place(header, index, count, file)
    if orientation is not None:
        orientation = orientation.reshape(2, 3)
        lengths = np.linalg.norm(orientation, axis=1)
        if not np.allclose(lengths, 1, atol=1e-2) or abs(orientation[0] @ orientation[1]) > 1e-2:
            raise InputError(
                f"The ImageOrientationPatient of {name} ({shown(orientation)}) is not two perpendicular directions of "
                "length 1. Export it again."
            )
    spacing, note = pixel_spacing(where, name)
    slope = _first(where, ("RescaleSlope",), 1, name)
    if slope is not None and slope[0] == 0:
        raise InputError(f"The RescaleSlope of {name} is 0, which makes all its values one. Export it again.")
    intercept = _first(where, ("RescaleIntercept",), 1, name)
    return Frame(
        file=file,
        source=source,
        index=index,
        count=count,
        series=str(header.get("SeriesInstanceUID", "")),
        number=_whole(header, "InstanceNumber", file, 0, strict=False),
        size=(int(header.Columns), int(header.Rows)),
        channels=channels,
        itemsize=itemsize,
        position=position,
        orientation=orientation,
        spacing=spacing,
        spacing_note=note,
        thickness=abs(float(thickness[0])) or None if thickness is not None else None,
        scale=(1.0 if slope is None else float(slope[0]), 0.0 if intercept is None else float(intercept[0])),
        stack=next((str(one.StackID) for one in where if one.get("StackID")), ""),
        distinctions=_distinctions(header, group, index, count),
    )


def _nuclear_place(
    header: Dataset, index: int, count: int, file: str
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Position and orientation of a frame of an NM image of reconstructed slices; of other images neither.

    DICOM PS3.3, C.8.4.8 and C.8.4.11: the detector says where the first slice lies, SliceVector which slice it is.
    """
    numbers = header.get("SliceVector") or ([1] if count == 1 else None)
    where = (*_items(header, "DetectorInformationSequence")[:1], header)
    kind = header.get("ImageType") or []
    said = any("ImagePositionPatient" in one for one in where)
    if numbers is None or not said or len(kind) < 3 or not str(kind[2]).startswith("RECON"):
        return None, None
    position = _first(where, ("ImagePositionPatient",), 3, file)
    orientation = _first(where, ("ImageOrientationPatient",), 6, file)
    step = _first((header,), ("SpacingBetweenSlices", "SliceThickness"), 1, file)
    if position is None or orientation is None or step is None:
        raise InputError(
            f"{file} holds reconstructed slices, but does not say where they lie (ImagePositionPatient and "
            "ImageOrientationPatient of DetectorInformationSequence, SpacingBetweenSlices). Export it again."
        )
    numbers = np.atleast_1d(numbers)
    if index >= len(numbers):
        raise InputError(f"The SliceVector of {file} numbers {len(numbers)} frames; there are more. Export it again.")
    normal = np.cross(*orientation.reshape(2, 3))
    return position + (int(numbers[index]) - 1) * float(step[0]) * normal, orientation


def _groups(item: Dataset) -> Iterator[Dataset]:
    """The first item of each functional group."""
    for element in item:
        if element.VR == "SQ" and element.value:
            yield element.value[0]


def _distinctions(header: Dataset, group: Dataset | None, index: int, count: int) -> dict[str, str]:
    found = {
        name: str(header.get(name)) for name in DISTINCTIONS if name not in _VECTORS and header.get(name) is not None
    }
    for name in _VECTORS:
        numbers = np.atleast_1d(header.get(name) if header.get(name) is not None else [])
        if len(numbers) == count:
            found[name] = str(numbers[index])
    if group is not None:
        found |= _within(group, 3)
        pointers = _items(header, "DimensionIndexSequence")
        values = next(
            (one.get("DimensionIndexValues") for one in _groups(group) if "DimensionIndexValues" in one), None
        )
        for pointer, value in zip(pointers, np.atleast_1d([] if values is None else values), strict=False):
            name = keyword_for_tag(pointer.get("DimensionIndexPointer", 0)) or str(pointer.get("DimensionIndexPointer"))
            if name not in _PLACES:
                found[f"index of {name}"] = str(value)
    if header.get("SOPInstanceUID") and count > 1:
        found["SOPInstanceUID"] = str(header.SOPInstanceUID)
    return found


def _within(item: Dataset, depth: int) -> dict[str, str]:
    found: dict[str, str] = {}
    for element in item:
        if element.VR == "SQ":
            if depth and element.value:
                found |= _within(element.value[0], depth - 1)
        elif element.keyword in DISTINCTIONS:
            found[element.keyword] = str(element.value)
    return found


def _items(header: Dataset, keyword: str) -> Sequence[Dataset]:
    found: Sequence[Dataset] = header.get(keyword) or []
    return found


def _first(where: Sequence[Dataset], keywords: Sequence[str], count: int, name: str) -> NDArray[np.float64] | None:
    """The first of some attributes that is there, as so many numbers."""
    for keyword in keywords:
        for dataset in where:
            found = numbers(dataset, keyword, count, name)
            if found is not None:
                return found
    return None


def _whole(header: Dataset, keyword: str, file: str, default: int = 0, strict: bool = True) -> int:
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
            f"The {keyword} of {file} is {shown(raw_text(header, keyword))}; a whole number must stand there. "
            "Export it again."
        ) from None
