"""Reading an image, whatever the format."""

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
from baps.io.nifti import read_nifti, read_nifti_place
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
"""What the names of images end in; a DICOM series is a folder of any name."""

_INSTEAD = {
    ".nhdr": "keeps its voxels in another file; save it as one file (.nrrd)",
    ".mhd": "keeps its voxels in another file; save it as one file (.mha)",
    ".img": "holds the voxels of an image without their place; give the .hdr beside it, or save as .nii",
    ".gz": "is no compressed kind that can be read; give .nii.gz, or unpack it",
}
"""What to do with files that lie beside images."""

Read = TypeVar("Read")


def file_stem(path: Path) -> str:
    """The name of an image without its suffix: "a" of a.nii.gz, "b.seg" of b.seg.nrrd; all of a folder's name."""
    return path.name if path.is_dir() else path.name[: len(path.name) - len(_suffix(path))]


def is_picture(path: Path) -> bool:
    """Return whether a file is of a kind that holds one slice."""
    return not path.is_dir() and _READERS.get(_suffix(path)) in (read_picture, read_arrays)


def read_volume(path: Path) -> Volume:
    """Read an image: NIfTI, NRRD, MetaImage, a DICOM series (a folder) or file (.dcm), PNG, JPEG, TIFF, or NPZ.

    Raises:
        NotFoundError: if there is no such file.
        InputError: if it cannot be read, is not three-dimensional, has no affine, or holds values that are not finite.
    """
    volume = read_with(reader_of(path), path)
    if volume.colour and volume.voxels.dtype != np.uint8:
        raise InputError(
            f"{path.name} holds colours of type {volume.voxels.dtype}; 8 bits a channel are needed. Export it again "
            "with 8 bits, or as grey values."
        )
    return check_volume(path.name, volume)


def read_place(path: Path) -> Volume:
    """Read where the voxels of an image lie; what they hold need not be read, and may be 0 everywhere.

    Raises:
        NotFoundError, InputError: as ``read_volume``.
    """
    if reader_of(path) is read_nifti:
        return check_volume(path.name, read_with(read_nifti_place, path))
    return read_volume(path)


def check_volume(name: str, volume: Volume) -> Volume:
    """Refuse a volume without voxels or place, or with values that are not finite.

    Raises:
        InputError: if it is one; it names the file.
    """
    if 0 in volume.shape:
        raise InputError(f"{name} has no voxels: its shape is {volume.shape}.")
    if not _is_place(volume.affine):
        raise InputError(f"{name} has an affine that cannot be inverted. Export it again with its geometry.")
    if np.issubdtype(volume.voxels.dtype, np.floating):
        bad = int(volume.voxels.size - np.isfinite(volume.voxels).sum())
        if bad:
            raise InputError(
                f"{name} holds {bad} voxels that are NaN or infinite. Replace them, by the value of air say."
            )
    return volume


def _is_place(affine: NDArray[np.float64]) -> bool:
    """Whether an affine can be inverted, and has voxels of a size that something has: a nanometre to a kilometre."""
    with np.errstate(all="ignore"):
        directions = affine[:3, :3]
        sizes = np.linalg.norm(directions, axis=0)
        if not (np.isfinite(affine).all() and (sizes > 1e-6).all() and (sizes < 1e6).all()):
            return False
        return bool(abs(np.linalg.det(directions / sizes)) > 1e-6)


def _suffix(path: Path) -> str:
    return next((suffix for suffix in IMAGE_SUFFIXES if path.name.lower().endswith(suffix)), "")


def reader_of(path: Path) -> Callable[[Path], Volume]:
    """Return what reads a file or folder.

    Raises:
        NotFoundError: if there is none.
        InputError: if it is of a kind that cannot be read.
    """
    if not path.exists():
        raise NotFoundError(f"There is no image {path.name}.")
    if path.is_dir():
        return read_dicom
    suffix = _suffix(path)
    if not suffix and (instead := _INSTEAD.get(path.suffix.lower())):
        raise InputError(f"{path.name} {instead}.")
    if not suffix:
        raise InputError(
            f"{path.name} is of a kind that cannot be read. Give NIfTI, NRRD, a folder with a DICOM series, or a "
            f"picture ({', '.join(IMAGE_SUFFIXES)})."
        )
    return _READERS[suffix]


def read_with(reader: Callable[[Path], Read], path: Path) -> Read:
    """Read a file, so that whatever is wrong with it becomes a sentence.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        return reader(path)
    except BapsError:
        raise
    except Exception as error:  # The readers raise many kinds; each means a broken or foreign file.
        raise InputError(
            f"{path.name} cannot be read ({type(error).__name__}: {error}). The file is broken or of another kind; "
            "export it again."
        ) from error
