"""NIfTI files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..replacing import replacing
from ..size import check_size
from ..volume import Volume
from .dimensions import three_dimensional

_VECTORS = (1007, 2003)
"""Intent codes of a vector and of a colour at each voxel (NIFTI_INTENT_VECTOR, NIFTI_INTENT_RGB_VECTOR)."""


def read_nifti(path: Path, channels: bool = False) -> Volume:
    """Read a NIfTI file (.nii, .nii.gz), of grey values or of colour (RGB24, or bytes with the intent of a vector).

    One of two dimensions is one slice, 1 mm thick if the file does not say.

    Args:
        path: the file.
        channels: whether several values a voxel are kept as they are, (I, J, K, C).

    Raises:
        InputError: if it has other than two or three dimensions, has no affine, or holds no grey values and no colour.
    """
    image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Image):
        raise InputError(f"{path.name} is no NIfTI file.")
    if image.header["sform_code"] == 0 and image.header["qform_code"] == 0:
        raise InputError(
            f"{path.name} has no affine (its sform and qform codes are 0), so nobody can say where it lies in the "
            "patient. Export it again with its geometry."
        )
    check_size(path.name, image.shape, image.header.get_data_dtype().itemsize)
    slope = image.dataobj.slope, image.dataobj.inter
    # A copy: an uncompressed file would be mapped, and change under whoever keeps the volume.
    voxels: NDArray[Any] = np.array(image.dataobj.get_unscaled() if slope == (1, 0) else image.dataobj)
    affine = np.asarray(image.affine, np.float64)
    if voxels.ndim == 2 and not affine[:3, 2].any():  # Nothing says how thick the slice is.
        affine[:3, 2] = _unit_normal(affine)
    if channels and voxels.dtype.names:
        raise InputError(f"The label {path.name} holds colour where grey values are needed. Save a labelmap.")
    if voxels.dtype.names in (("R", "G", "B"), ("R", "G", "B", "A")):
        return Volume(_channels([voxels[channel] for channel in "RGB"], path.name), affine)
    if voxels.ndim == 5 and voxels.shape[3] == 1:  # The channels of a vector come fifth, after the time.
        voxels = voxels[..., 0, :]
    if channels and voxels.ndim == 4 and voxels.shape[3] > 1 and voxels.dtype.kind in "iuf":
        return Volume(voxels, affine)
    if voxels.dtype == np.uint8 and voxels.shape[-1] == 3 and int(image.header["intent_code"]) in _VECTORS:
        return Volume(_channels([voxels[..., channel] for channel in range(3)], path.name), affine)
    if voxels.dtype == np.float64:
        voxels = voxels.astype(np.float32)
    if voxels.dtype.kind not in "iuf":
        raise InputError(f"{path.name} holds values of type {voxels.dtype}; grey values are needed.")
    return Volume(three_dimensional(voxels, path.name), affine)


def _channels(channels: Sequence[NDArray[Any]], name: str) -> NDArray[Any]:
    """Red, green and blue, (I, J, K) each, as (I, J, K, 3)."""
    return np.stack([three_dimensional(channel, name) for channel in channels], axis=-1)


def _unit_normal(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the plane of I and J; zero if they span none."""
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    return normal / (np.linalg.norm(normal) or 1)


def write_nifti(path: Path, volume: Volume) -> None:
    """Write a NIfTI file of grey values, labels or colour (RGB24); it appears under its name only when it is whole."""
    voxels: NDArray[Any] = volume.voxels
    if volume.colour:
        voxels = np.ascontiguousarray(voxels).view([(channel, np.uint8) for channel in "RGB"])[..., 0]
    image = nibabel.Nifti1Image(voxels, volume.affine)
    image.header.set_xyzt_units("mm")
    suffix = ".nii.gz" if path.name.endswith(".gz") else ".nii"
    with replacing(path, suffix) as partial:
        nibabel.save(image, partial)
