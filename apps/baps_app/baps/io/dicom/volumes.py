"""Read DICOM images: a folder with one series, or one file of one or many frames.

The headers of the frames determine where the voxels lie (``frames``, ``stacks``); the pixels are decoded afterwards
(``pixels``). Voxels are indexed [column, row, slice], with the slices ordered along the normal, cross(row, column), as
in MONAI Label's own conversion: viewers send clicks in that index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io.dicom.frames import HEADER_KEYWORDS, Frame, read_frames
from baps.io.dicom.pixels import broken_file_message, decode_pixels, is_dicom, read_dataset
from baps.io.dicom.stacks import Stack, format_titles, split_volumes, stack_frames
from baps.utils.limits import check_size

DICOM_SUFFIX = ".dcm"

VOLUME_INFIX = "-volume"
"""Text between the name of a source and the number of a volume in the name of an image."""

_MAX_PROBED = 16
"""Number of files in a folder that are opened to find out whether it holds DICOM."""


class SeveralVolumesError(InputError):
    """A series or an object holds several volumes, and none was chosen.

    Args:
        name: name of the file or folder.
        titles: what distinguishes each volume from the others.
    """

    def __init__(self, name: str, titles: Sequence[str]) -> None:
        super().__init__(
            f"{name} holds {len(titles)} volumes ({format_titles(titles)}); an image has one. Choose one of them, or "
            "write each into a separate file: baps convert."
        )
        self.titles = tuple(titles)


def volume_id(stem: str, number: int) -> str:
    """Name the image that is one volume of several.

    Args:
        stem: name of the source.
        number: number of the volume, from 1.

    Returns:
        The name.
    """
    return f"{stem}{VOLUME_INFIX}{number}"


def is_dicom_folder(path: Path) -> bool:
    """Return whether a path is a folder that holds DICOM files, by its first few files.

    Args:
        path: the path.

    Returns:
        True for a folder with DICOM files.
    """
    if not path.is_dir():
        return False
    return any(file.suffix.lower() == DICOM_SUFFIX or is_dicom(file) for file in islice(_files(path), _MAX_PROBED))


def read_patient(path: Path) -> str | None:
    """Read the PatientID of a DICOM folder or file.

    Args:
        path: path of the folder or the file.

    Returns:
        The PatientID, or None for files of other formats or if it is empty.

    Raises:
        InputError: if the DICOM is broken.
    """
    if not path.is_dir() and path.suffix.lower() != DICOM_SUFFIX:
        return None
    for file in _sorted_files(path):
        header = _header(file, ("SOPClassUID", "Rows", "SeriesInstanceUID", "PatientID"))
        if header is not None and (header.get("Rows") or not path.is_dir()):
            return str(header.get("PatientID") or "").strip() or None
    return None


def read_dicom(path: Path, number: int | None = None) -> Volume:
    """Read a volume of the series in a folder, or of a single file.

    Files that are not DICOM, and objects that are not images (segmentations, structure sets, reports), are ignored. An
    image without a position, such as an X-ray, lies along the axes of LPS.

    Args:
        path: path of the folder or the file.
        number: number of the volume, from 1, in the order of ``read_each_volume``, if there are several.

    Returns:
        The volume.

    Raises:
        InputError: if there is no image, or more than one series; if slices are missing, doubled, or differ in size,
            spacing or orientation; if a file is broken or cannot be decoded; SeveralVolumesError if there are several
            volumes and none was chosen.
    """
    stack, files = _stack(path, number)
    return _read(stack, files, {}, Counter(frame.source for frame in stack.frames))


def read_each_volume(path: Path) -> Iterator[tuple[str, Volume | InputError]]:
    """Read the volumes of a series or an object one after another. Each file is decoded once.

    Args:
        path: path of the folder or the file.

    Yields:
        Title that distinguishes the volume from the others, and the volume or the error, such as missing slices.

    Raises:
        InputError: if there is no volume at all, or a header cannot be used.
    """
    frames, files = _frames(path)
    volumes = split_volumes(path.name, frames)
    decoded: dict[int, NDArray[np.generic]] = {}
    remaining = Counter(frame.source for frame in frames)
    for title, chosen in volumes.items():
        try:
            yield title, _read(_stack_checked(path.name, chosen), files, decoded, remaining)
        except InputError as error:
            yield title, error


def _read(
    stack: Stack, files: Sequence[Path], decoded: dict[int, NDArray[np.generic]], remaining: Counter[int]
) -> Volume:
    """Read the pixels of a stack.

    Args:
        stack: frames and geometry.
        files: files by source.
        decoded: pixels by source that are decoded already and needed again.
        remaining: number of frames of each source that are needed for this stack and later ones.
    """
    planes = []
    for frame in stack.frames:
        if frame.source not in decoded:
            decoded[frame.source] = decode_pixels(files[frame.source])
        planes.append(_rescaled(decoded[frame.source][frame.index], frame.scale))
        remaining[frame.source] -= 1
        if not remaining[frame.source]:
            del decoded[frame.source]
    return Volume(_voxels(planes, stack), stack.affine, stack.notes)


def _stack(path: Path, number: int | None) -> tuple[Stack, list[Path]]:
    frames, files = _frames(path)
    volumes = split_volumes(path.name, frames)
    if number is None and len(volumes) > 1:
        raise SeveralVolumesError(path.name, list(volumes))
    if number is not None and not 1 <= number <= len(volumes):
        raise InputError(f"{path.name} holds {len(volumes)} volumes, so there is no volume {number}.")
    chosen = list(volumes.values())[(number or 1) - 1]
    return _stack_checked(path.name, chosen), files


def _stack_checked(name: str, frames: Sequence[Frame]) -> Stack:
    """Stack frames, unless they have more voxels than the limit."""
    largest = max(frames, key=lambda frame: frame.size[0] * frame.size[1])
    check_size(name, (*largest.size, len(frames), largest.channels), largest.itemsize)
    stack = stack_frames(name, frames)
    integers = all(float(number).is_integer() for frame in frames for number in frame.scale)
    itemsize = largest.itemsize if integers else max(largest.itemsize, np.dtype(np.float32).itemsize)
    check_size(name, (*stack.shape, largest.channels), itemsize)
    return stack


def _frames(path: Path) -> tuple[list[Frame], list[Path]]:
    """Read the frames of the images in a folder, by file name, or those of a file; return them with the files."""
    frames: list[Frame] = []
    files: list[Path] = []
    header = None
    for file in _sorted_files(path):
        header = _header(file, HEADER_KEYWORDS)
        if header is None:
            continue
        try:
            frames_of_file = read_frames(header, file.name, len(files))
        except InputError:
            raise
        except Exception as error:  # pydicom raises many types when a value is used.
            raise InputError(broken_file_message(file.name)) from error
        if frames_of_file:
            frames += frames_of_file
            files.append(file)
    if not frames and header is not None and not path.is_dir():
        raise InputError(
            f"{path.name} is not an image: it is {_class_name(header)}. Give an image, or the folder in which the "
            "files of one image series lie."
        )
    if not frames:
        raise InputError(
            f"{path.name} holds no DICOM images. Give the folder in which the files of one image series lie."
        )
    series = len({frame.series for frame in frames})
    if series > 1:
        raise InputError(
            f"{path.name} holds {series} series of images; a volume has one. Put each series into a separate folder."
        )
    return frames, files


def _class_name(header: Dataset) -> str:
    uid = UID(header.get("SOPClassUID") or "")
    return f"{uid.name} (SOPClassUID {uid})" if uid.is_valid and uid.name != uid else "of an unknown SOPClassUID"


def _sorted_files(path: Path) -> list[Path]:
    return sorted(_files(path)) if path.is_dir() else [path]


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder, without hidden ones, which macOS puts beside others, and broken links."""
    return (file for file in folder.iterdir() if not file.name.startswith(".") and file.is_file())


def _header(path: Path, tags: tuple[str, ...]) -> Dataset | None:
    """Return the header of a DICOM file, or None for a file of another format."""
    try:
        header = read_dataset(path, tags=tags)
        if "SOPClassUID" not in header and "MediaStorageSOPClassUID" in header.file_meta:
            header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID
        return header
    except InvalidDicomError:
        if path.suffix.lower() == DICOM_SUFFIX:
            raise InputError(
                f"{path.name} cannot be read: it is not a DICOM file. Give an image of the format that its name says."
            ) from None
        return None
    except InputError:
        raise
    except Exception as error:  # pydicom raises many types.
        raise InputError(broken_file_message(path.name)) from error


def _rescaled(pixels: NDArray[np.generic], scale: tuple[float, float]) -> NDArray[np.generic]:
    """Apply slope and intercept; integers stay integers where possible."""
    slope, intercept = scale
    if (slope, intercept) == (1, 0) or pixels.ndim == 3:
        return pixels.astype(np.float32) if pixels.dtype == np.float64 else pixels
    if pixels.dtype.kind in "iu" and slope == int(slope) and intercept == int(intercept):
        rescaled = pixels.astype(np.int64) * int(slope) + int(intercept)
        for dtype in (np.int16, np.int32):
            if np.iinfo(dtype).min <= rescaled.min() and rescaled.max() <= np.iinfo(dtype).max:
                return rescaled.astype(dtype)
    return (pixels.astype(np.float64) * slope + intercept).astype(np.float32)


def _voxels(planes: list[NDArray[np.generic]], stack: Stack) -> NDArray[np.generic]:
    """Stack planes (rows, columns[, 3]) along K to (I, J, K[, 3]), with air beside those that were shifted."""
    dtype = np.result_type(*planes)
    channels = planes[0].shape[2:]
    lowest = min(plane.min() for plane in planes) if stack.straightened else 0
    voxels = np.empty((len(planes), stack.shape[1], stack.shape[0], *channels), dtype)
    for target, (i, j) in zip(reversed(voxels), reversed(stack.offsets), strict=True):
        plane = planes.pop()  # Free each plane; together they take as much memory as the voxels.
        if stack.straightened:
            target[:] = lowest
        target[j : j + plane.shape[0], i : i + plane.shape[1]] = plane
    return np.swapaxes(voxels, 0, 2)
