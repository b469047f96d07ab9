"""Reading an image or its labels, whatever the format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import nibabel
import numpy as np
from numpy.typing import NDArray

from ..errors import BapsError, InputError, NotFoundError
from ..volume import Volume
from .dicom import DICOM_SUFFIX, read_dicom
from .metaimage import read_metaimage
from .nifti import read_nifti
from .nrrd import read_nrrd
from .picture import read_array_labels, read_arrays, read_picture, read_picture_labels

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

_PICTURE_LABELS: dict[Callable[[Path], Volume], Callable[[Path], NDArray[np.generic]]] = {
    read_picture: read_picture_labels,
    read_arrays: read_array_labels,
}
_INSTEAD = {
    ".nhdr": "keeps its voxels in another file; save it as one file (.nrrd)",
    ".mhd": "keeps its voxels in another file; save it as one file (.mha)",
    ".img": "holds the voxels of an image without their place; give the .hdr beside it, or save as .nii",
    ".gz": "is no compressed kind that can be read; give .nii.gz, or unpack it",
}
"""What to do with files that lie beside images."""

_MOST_LABELS = 256
Read = TypeVar("Read")


def file_stem(path: Path) -> str:
    """The name of an image without its suffix: "a" of a.nii.gz, "b.seg" of b.seg.nrrd; all of a folder's name."""
    return path.name if path.is_dir() else path.name[: len(path.name) - len(_suffix(path))]


def read_volume(path: Path) -> Volume:
    """Read an image: NIfTI, NRRD, MetaImage, a DICOM series (a folder) or file (.dcm), PNG, JPEG, TIFF, or NPZ.

    Raises:
        NotFoundError: if there is no such file.
        InputError: if it cannot be read, is not three-dimensional, has no affine, or holds values that are not finite.
    """
    volume = _read(_reader(path), path)
    if 0 in volume.shape:
        raise InputError(f"{path.name} has no voxels: its shape is {volume.shape}.")
    if volume.colour and volume.voxels.dtype != np.uint8:
        raise InputError(
            f"{path.name} holds colours of type {volume.voxels.dtype}; 8 bits a channel are needed. Export it again "
            "with 8 bits, or as grey values."
        )
    if not _is_place(volume.affine):
        raise InputError(f"{path.name} has an affine that cannot be inverted. Export it again with its geometry.")
    if np.issubdtype(volume.voxels.dtype, np.floating):
        bad = int(volume.voxels.size - np.isfinite(volume.voxels).sum())
        if bad:
            raise InputError(
                f"{path.name} holds {bad} voxels that are NaN or infinite. Replace them, by the value of air say."
            )
    return volume


def read_labels(path: Path, image: Volume) -> NDArray[np.integer[Any]]:
    """Read the labels of an image, (I, J, K) integers in the voxel order of the image.

    Labels at the same place that are stored along other axes, or mirrored, are brought into that order. Labels without
    a place (PNG, TIFF, JPEG, or ``seg`` of an NPZ file) fit an image of one slice with as many columns and rows.

    Raises:
        NotFoundError: if there is no such file.
        InputError: if they cannot be read, lie elsewhere than the image, are no whole numbers, or are of more than 256
            different values.
    """
    reader = _reader(path)
    if reader in _PICTURE_LABELS:
        labels = Volume(_read(_PICTURE_LABELS[reader], path), image.affine)
    else:
        labels = _in_order_of(image, read_volume(path))
    if labels.colour:
        raise InputError(f"The label {path.name} holds colour where grey values are needed. Save a labelmap.")
    if not labels.same_geometry(image):
        raise InputError(
            f"The label {path.name} has shape {labels.shape} and does not lie where its image does (shape "
            f"{image.shape}). Save the segmentation with the geometry of the image."
        )
    voxels = labels.voxels
    if np.issubdtype(voxels.dtype, np.floating):
        whole = np.rint(voxels)
        if not np.array_equal(whole, voxels):
            raise InputError(f"The label {path.name} holds fractions. Save a labelmap of whole numbers.")
        voxels = whole.astype(np.int32)
    if int(voxels.max()) - int(voxels.min()) >= _MOST_LABELS:  # Counting them is slow.
        different = len(np.unique(voxels))
        if different > _MOST_LABELS:
            raise InputError(
                f"The label {path.name} holds {different} different values; that is an image, not a labelmap. Give the "
                "segmentation, one whole number for each object."
            )
    return np.asarray(voxels)  # type: ignore[return-value]


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


def _reader(path: Path) -> Callable[[Path], Volume]:
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


def _read(reader: Callable[[Path], Read], path: Path) -> Read:
    try:
        return reader(path)
    except BapsError:
        raise
    except Exception as error:  # The readers raise many kinds; each means a broken or foreign file.
        raise InputError(
            f"{path.name} cannot be read ({type(error).__name__}: {error}). The file is broken or of another kind; "
            "export it again."
        ) from error


def _in_order_of(image: Volume, labels: Volume) -> Volume:
    """Labels with their axes permuted and flipped to run as nearly as they can along those of the image."""
    to_image = nibabel.orientations.io_orientation(np.linalg.inv(image.affine) @ labels.affine)
    order = nibabel.orientations.inv_ornt_aff(to_image, labels.shape)
    return Volume(nibabel.orientations.apply_orientation(labels.voxels, to_image), labels.affine @ order)
