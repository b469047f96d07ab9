"""DICOM: a folder with one series of slices, or one file.

pydicom reads the headers, which say what belongs together and where it lies; SimpleITK decodes the pixels, compressed
ones too, and applies the rescale slope and intercept. It also turns MONOCHROME1, where less is brighter, and YBR colour
into what is shown. Voxels are indexed [column, row, slice] with the slices in order along the normal, cross(row,
column), as MONAI Label's own conversion has them: the viewers send clicks in that index.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK
from numpy.typing import NDArray
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.errors import InvalidDicomError
from pydicom.pixel_data_handlers.util import get_expected_length
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from ..errors import InputError
from ..size import check_size
from ..volume import Volume

DICOM_SUFFIX = ".dcm"

_HEADER = [
    "SOPClassUID",
    "SeriesInstanceUID",
    "PatientID",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "BitsAllocated",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "ImagerPixelSpacing",
]
_PIXELS = [
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "BitsAllocated",
    "PhotometricInterpretation",
    "PixelData",
]
_UNSAID = 0xFFFFFFFF
"""The length of a value that ends with a mark."""

_FIRST_GROUP = 0x0008
"""Of what an image holds; those before it are the file's own, or commands."""

_LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])

_LOOKED_AT = 16
"""Files of a folder that are opened to tell whether it holds DICOM."""

_SAME_PLANE = 0.01
"""Slices nearer to each other than this along their normal are one plane twice, mm."""

_UNEVEN = 0.2
"""Share of the usual step by which a step between slices may differ: headers round positions, to 0.1 mm at worst."""


@dataclass(frozen=True)
class _Image:
    """What the header of an image says.

    Attributes:
        path: the file.
        series: SeriesInstanceUID, empty in some anonymised files.
        patient: PatientID, or empty.
        size: (columns, rows).
        frames: 1 but in multi-frame files.
        channels: 3 of colour.
        itemsize: bytes of a value.
        position: of the centre of the first voxel, mm, LPS; or None.
        orientation: (2, 3) directions in which the columns and the rows are counted, LPS; or None.
        spacing: distance of neighbouring columns and rows, mm.
    """

    path: Path
    series: str
    patient: str
    size: tuple[int, int]
    frames: int
    channels: int
    itemsize: int
    position: NDArray[np.float64] | None
    orientation: NDArray[np.float64] | None
    spacing: tuple[float, float]


def is_dicom_folder(path: Path) -> bool:
    """Whether a path is a folder that holds DICOM files, by the first few of its files."""
    if not path.is_dir():
        return False
    return any(file.suffix.lower() == DICOM_SUFFIX or _has_mark(file) for file in islice(_files(path), _LOOKED_AT))


def read_patient(path: Path) -> str | None:
    """The PatientID of a DICOM folder or file; None for files of other kinds, or where it is empty.

    Raises:
        InputError: if the DICOM is broken.
    """
    if not path.is_dir() and path.suffix.lower() != DICOM_SUFFIX:
        return None
    image = next(_images(path), None)
    return image.patient or None if image else None


def read_dicom(path: Path) -> Volume:
    """Read the series in a folder, or a single file: of one slice, or of several frames along K.

    Files that are no DICOM, and objects that are no images (segmentations, structure sets, reports), are ignored. A
    single file lies where SimpleITK puts it; one without a position, an X-ray say, along the axes of LPS.

    Raises:
        InputError: if there is no image, or more than one series; if slices are missing, doubled, or differ in size,
            spacing or orientation; if a file is broken.
    """
    images = list(_images(path))
    if not images:
        raise InputError(
            f"{path.name} holds no DICOM images. Give the folder in which the files of one image series lie."
        )
    _check_size(path.name, images)
    series = len({image.series for image in images})
    if series > 1:
        raise InputError(
            f"{path.name} holds {series} series of images; a volume is one. Put each series into a folder of its own."
        )
    if len(images) == 1:
        decoded = _decode(images[0].path)
        return Volume(_voxels([decoded]), _affine_of(decoded))
    _check_alike(path.name, images)
    images = _in_order(images)
    affine = _affine(path.name, images)
    return Volume(_voxels([_decode(image.path) for image in images]), affine)


def _files(folder: Path) -> Iterator[Path]:
    """The files of a folder; not the hidden ones, which macOS lays beside others, nor links that lead nowhere."""
    return (file for file in folder.iterdir() if not file.name.startswith(".") and file.is_file())


def _images(path: Path) -> Iterator[_Image]:
    """The images of a folder by file name, or that of a file."""
    files = sorted(_files(path)) if path.is_dir() else [path]
    for file in files:
        image = _read_header(file)
        if image:
            yield image


def _has_mark(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _broken(path: Path) -> InputError:
    return InputError(f"{path.name} cannot be read. The file is broken or cut off; export it again.")


def _read_header(path: Path) -> _Image | None:
    """The header of an image; None for a file that is no DICOM, or no image."""
    try:
        meta = pydicom.filereader.read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:  # It unpacks to any size when it is opened.
            raise InputError(
                f"{path.name} is packed as a whole (Deflated). Export it again in another transfer syntax."
            )
        # Nothing else is read, so that no name of a patient can get into a message.
        return _image(path, pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_HEADER))
    except InvalidDicomError:
        if path.suffix.lower() == DICOM_SUFFIX:
            raise _broken(path) from None
        return None
    except InputError:
        raise
    except Exception as error:  # pydicom raises many kinds, and some only when a value is used.
        raise _broken(path) from error


def _image(path: Path, header: pydicom.FileDataset) -> _Image | None:
    """What a header says; None where it is that of no image."""
    kind = UID(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")
    if kind.name != kind:
        if "Image Storage" not in kind.name:
            return None
    elif "Rows" not in header and "SeriesInstanceUID" in header:  # What a vendor keeps beside its images.
        return None
    if not header.get("Rows") or not header.get("Columns"):
        raise _broken(path)
    orientation = _numbers(header, "ImageOrientationPatient", 6)
    spacing = _numbers(header, "PixelSpacing", 2)
    if spacing is None:
        spacing = _numbers(header, "ImagerPixelSpacing", 2)
    return _Image(
        path=path,
        series=str(header.get("SeriesInstanceUID", "")),
        patient=str(header.get("PatientID") or "").strip(),
        size=(int(header.Columns), int(header.Rows)),
        frames=int(header.get("NumberOfFrames") or 1),
        channels=int(header.get("SamplesPerPixel") or 1),
        itemsize=-(-int(header.get("BitsAllocated") or 16) // 8),
        position=_numbers(header, "ImagePositionPatient", 3),
        orientation=None if orientation is None else orientation.reshape(2, 3),
        # DICOM gives the distance of the rows first.
        spacing=(1.0, 1.0) if spacing is None else (float(spacing[1]), float(spacing[0])),
    )


def _check_size(name: str, images: Sequence[_Image]) -> None:
    """Refuse a series that is too large, going by its largest slice: of slices that differ the next check tells."""
    largest = [max(image.size[axis] for image in images) for axis in (0, 1)]
    slices, channels = sum(image.frames for image in images), max(image.channels for image in images)
    check_size(name, (*largest, slices, channels), max(image.itemsize for image in images))


def _numbers(header: pydicom.Dataset, keyword: str, count: int) -> NDArray[np.float64] | None:
    values = np.atleast_1d(np.asarray(header.get(keyword) or [], np.float64))
    return values if len(values) == count else None


def _check_alike(name: str, images: Sequence[_Image]) -> None:
    """Refuse slices that cannot be stacked."""
    first = images[0]
    for image in images:
        if image.frames > 1:
            raise InputError(
                f"{name} holds {len(images)} files, of which {image.path.name} has {image.frames} frames. Give that "
                "file alone."
            )
        if image.position is None or image.orientation is None:
            raise InputError(
                f"{name} holds {len(images)} images, but {image.path.name} does not say where it lies "
                "(ImagePositionPatient, ImageOrientationPatient), so they have no order. Give each file alone."
            )
        if image.size != first.size:
            raise InputError(
                f"{image.path.name} has {image.size[0]} columns and {image.size[1]} rows, {first.path.name} "
                f"{first.size[0]} and {first.size[1]}. Put slices of different size into folders of their own."
            )
        if not np.allclose(image.orientation, np.asarray(first.orientation), rtol=0, atol=1e-3):
            raise InputError(
                f"{image.path.name} and {first.path.name} differ in orientation (ImageOrientationPatient). Take "
                "localizers out of the folder, or put each stack of slices into a folder of its own."
            )
        if not np.allclose(image.spacing, first.spacing, rtol=1e-3):
            raise InputError(
                f"{image.path.name} and {first.path.name} differ in the size of a pixel (PixelSpacing). Put slices of "
                "different spacing into folders of their own."
            )


def _positions(images: Sequence[_Image]) -> NDArray[np.float64]:
    """(K, 3), mm, LPS."""
    return np.array([image.position for image in images])


def _normal(image: _Image) -> NDArray[np.float64]:
    assert image.orientation is not None
    return np.cross(*image.orientation)


def _in_order(images: Sequence[_Image]) -> list[_Image]:
    """The slices along their normal."""
    return [images[place] for place in np.argsort(_positions(images) @ _normal(images[0]), kind="stable")]


def _affine(name: str, images: Sequence[_Image]) -> NDArray[np.float64]:
    """Voxel index to patient position, mm, RAS, of slices in order; refuses slices that are doubled or missing.

    The step from slice to slice is that of their positions, which a tilted gantry makes oblique to the slices.
    """
    first, positions = images[0], _positions(images)
    steps = np.diff(positions, axis=0)
    doubled = np.flatnonzero(steps @ _normal(first) < _SAME_PLANE)
    if len(doubled):
        here = doubled[0]
        raise InputError(
            f"{name} has doubled slices ({len(doubled)}): {images[here].path.name} and {images[here + 1].path.name} "
            "lie in the same plane. Export one time point, echo or reconstruction alone."
        )
    usual = np.median(steps, axis=0)
    uneven = np.flatnonzero(np.linalg.norm(steps - usual, axis=1) > _UNEVEN * np.linalg.norm(usual))
    if len(uneven):
        here = uneven[0]
        raise InputError(
            f"{name} has missing slices or uneven gaps ({len(uneven)}): {images[here].path.name} and "
            f"{images[here + 1].path.name} lie {np.linalg.norm(steps[here]):.2f} mm apart where "
            f"{np.linalg.norm(usual):.2f} mm are usual. Export the whole series again, or resample it to even slices."
        )
    assert first.orientation is not None
    affine = np.eye(4)
    affine[:3, :2] = first.orientation.T * first.spacing
    affine[:3, 2] = (positions[-1] - positions[0]) / (len(images) - 1)
    affine[:3, 3] = positions[0]
    return _LPS_TO_RAS @ affine


def _affine_of(decoded: SimpleITK.Image) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(decoded.GetDirection(), (3, 3)) * decoded.GetSpacing()
    affine[:3, 3] = decoded.GetOrigin()
    return _LPS_TO_RAS @ affine


def _decode(path: Path) -> SimpleITK.Image:
    _check_lengths(path)
    header = pydicom.dcmread(path, specific_tags=_PIXELS)
    # SimpleITK notices a file that is cut off, but fills up pixels that are too few.
    if "PixelData" not in header or (
        not header.file_meta.TransferSyntaxUID.is_compressed and len(header.PixelData) < get_expected_length(header)
    ):
        raise _broken(path)
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        return reader.Execute()
    except RuntimeError as error:
        raise InputError(
            f"The pixels of {path.name} cannot be decoded. The file is cut off, broken or compressed in a rare way; "
            "export it again, uncompressed."
        ) from error


def _check_lengths(path: Path) -> None:
    """Refuse a file with values longer than itself: GDCM makes room for a value, gigabytes, before it reads it."""
    whole, size = pydicom.dcmread(path, defer_size=1024), path.stat().st_size
    for dataset in (whole.file_meta, whole):
        if not _is_whole(dataset, size):
            raise _broken(path)
    if any(tag.group < _FIRST_GROUP for tag in whole.keys()):  # noqa: SIM118  # it is no dict
        raise _broken(path)  # The two libraries read on in different ways.
    if "PixelData" in whole and whole["PixelData"].is_undefined_length:
        packed, place = bytes(whole.PixelData), 0
        while place + 8 <= len(packed):
            place += 8 + int.from_bytes(packed[place + 4 : place + 8], "little")
        if place > len(packed):
            raise _broken(path)


def _is_whole(dataset: pydicom.Dataset, size: int) -> bool:
    """Whether no value of a dataset, or of the sequences in it, goes on behind the end."""
    for raw in list(dataset.values()):
        if isinstance(raw, RawDataElement):
            end = raw.value_tell + raw.length if raw.value is None else raw.length - len(raw.value) + size
            if raw.length != _UNSAID and end > size:
                return False
        if raw.VR == "SQ" or (raw.VR is None and dictionary_has_tag(raw.tag) and dictionary_VR(raw.tag) == "SQ"):
            items = dataset[raw.tag].value or ()
            if not all(_is_whole(item, size) for item in items):
                return False
    return True


def _voxels(slices: Sequence[SimpleITK.Image]) -> NDArray[np.generic]:
    """(I, J, K) or (I, J, K, 3), slices stacked along K."""
    stack = np.concatenate([SimpleITK.GetArrayFromImage(image) for image in slices])
    if stack.dtype == np.float64:
        stack = stack.astype(np.float32)
    return np.swapaxes(stack, 0, 2)
