"""Read an image of any supported format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from baps.errors import BapsError, InputError, NotFoundError
from baps.imaging.volume import Volume
from baps.io.dicom.volumes import DICOM_SUFFIX, read_dicom
from baps.io.metaimage import read_metaimage
from baps.io.nifti import read_nifti, read_nifti_geometry
from baps.io.nrrd import read_nrrd
from baps.io.pictures import read_arrays, read_picture

_READERS: dict[str, Callable[[Path], Volume]] = {
    ".nii.gz": read_nifti,
    ".nii": read_nifti,
    ".hdr": read_nifti,
    ".nrrd": read_nrrd,
    ".mha": read_metaimage,
    DICOM_SUFFIX: read_dicom,
    ".png": read_picture,
    ".jpg": read_picture,
    ".jpeg": read_picture,
    ".tif": read_picture,
    ".tiff": read_picture,
    ".npz": read_arrays,
}
IMAGE_SUFFIXES = tuple(_READERS)
"""Suffixes of image files. A DICOM series is a folder of any name."""

_ADVICE = {
    ".nhdr": "keeps its voxels in another file; save it as one file (.nrrd)",
    ".mhd": "keeps its voxels in another file; save it as one file (.mha)",
    ".img": "holds the voxels of an image without their geometry; give the .hdr beside it, or save as .nii",
    ".gz": "is not a supported compressed format; give .nii.gz, or unpack it",
}
"""What to do about files that accompany images."""

Result = TypeVar("Result")


def file_stem(path: Path) -> str:
    """Return the name of an image without its suffix.

    It is "a" for a.nii.gz, "b.seg" for b.seg.nrrd, and the whole name of a folder.

    Args:
        path: path of the image.

    Returns:
        The name.
    """
    return path.name if path.is_dir() else path.name[: len(path.name) - len(_suffix(path))]


def is_picture(path: Path) -> bool:
    """Return whether a file has a format that holds one slice.

    Args:
        path: path of the file.

    Returns:
        True for PNG, JPEG, TIFF and NPZ files.
    """
    return not path.is_dir() and _READERS.get(_suffix(path)) in (read_picture, read_arrays)


def read_volume(path: Path) -> Volume:
    """Read an image: NIfTI, NRRD, MetaImage, a DICOM series (a folder) or file (.dcm), PNG, JPEG, TIFF, or NPZ.

    Args:
        path: path of the file or folder.

    Returns:
        The volume.

    Raises:
        InputError: if the image cannot be read, is not three-dimensional, has no affine, or holds values that are not
            finite; NotFoundError if there is no such file.
    """
    volume = read_safely(find_reader(path), path)
    if volume.colour and volume.voxels.dtype != np.uint8:
        raise InputError(
            f"{path.name} holds colours of type {volume.voxels.dtype}; 8 bits per channel are needed. Export it again "
            "with 8 bits, or as grey values."
        )
    return check_volume(path.name, volume)


def read_geometry(path: Path) -> Volume:
    """Read the geometry of an image. The voxels need not be read, and may be 0 everywhere.

    Args:
        path: path of the file or folder.

    Returns:
        A volume of the same shape and affine.

    Raises:
        InputError: see ``read_volume``.
    """
    if find_reader(path) is read_nifti:
        return check_volume(path.name, read_safely(read_nifti_geometry, path))
    return read_volume(path)


def check_volume(name: str, volume: Volume) -> Volume:
    """Check that a volume has voxels, a valid affine, and finite values.

    Args:
        name: name of the file, for the error message.
        volume: the volume.

    Returns:
        The volume.

    Raises:
        InputError: if the check fails.
    """
    if 0 in volume.shape:
        raise InputError(f"{name} has no voxels: its shape is {volume.shape}.")
    if not _is_valid_affine(volume.affine):
        raise InputError(f"{name} has an affine that cannot be inverted. Export it again with its geometry.")
    if np.issubdtype(volume.voxels.dtype, np.floating):
        invalid = int(volume.voxels.size - np.isfinite(volume.voxels).sum())
        if invalid:
            raise InputError(
                f"{name} holds {invalid} voxels that are NaN or infinite. Replace them, for example by the value of "
                "air."
            )
    return volume


def _is_valid_affine(affine: NDArray[np.float64]) -> bool:
    """Return whether an affine can be inverted and its voxels have a plausible size, a nanometre to a kilometre."""
    with np.errstate(all="ignore"):
        directions = affine[:3, :3]
        sizes = np.linalg.norm(directions, axis=0)
        if not (np.isfinite(affine).all() and (sizes > 1e-6).all() and (sizes < 1e6).all()):
            return False
        return bool(abs(np.linalg.det(directions / sizes)) > 1e-6)


def _suffix(path: Path) -> str:
    return next((suffix for suffix in IMAGE_SUFFIXES if path.name.lower().endswith(suffix)), "")


def find_reader(path: Path) -> Callable[[Path], Volume]:
    """Find the function that reads a file or folder.

    Args:
        path: path of the file or folder.

    Returns:
        The function.

    Raises:
        NotFoundError: if the path does not exist.
        InputError: if the format is not supported.
    """
    if not path.exists():
        raise NotFoundError(f"There is no image {path.name}.")
    if path.is_dir():
        return read_dicom
    suffix = _suffix(path)
    if not suffix and (advice := _ADVICE.get(path.suffix.lower())):
        raise InputError(f"{path.name} {advice}.")
    if not suffix:
        raise InputError(
            f"{path.name} has a format that is not supported. Give NIfTI, NRRD, a folder with a DICOM series, or a "
            f"picture ({', '.join(IMAGE_SUFFIXES)})."
        )
    return _READERS[suffix]


def read_safely(reader: Callable[[Path], Result], path: Path) -> Result:
    """Read a file, and convert any error to one sentence.

    Args:
        reader: function that reads the file.
        path: path of the file.

    Returns:
        What the function returned.

    Raises:
        InputError: if the file cannot be read.
        BapsError: if the reader raises it.
    """
    try:
        return reader(path)
    except BapsError:
        raise
    except Exception as error:  # The readers raise many types; each means a broken or foreign file.
        raise InputError(
            f"{path.name} cannot be read ({type(error).__name__}: {error}). The file is broken or of another format; "
            "export it again."
        ) from error
