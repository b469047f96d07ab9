"""Reading images and labels of any kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, NotFoundError
from ..volume import Volume
from .nifti import read_nifti
from .nrrd import read_nrrd


def read_volume(path: Path) -> Volume:
    """Read a NIfTI (.nii, .nii.gz) or NRRD (.nrrd) file.

    Raises:
        NotFoundError: if there is no such file.
        InputError: if it cannot be read, is not three-dimensional, has no affine, or holds values that are not finite.
    """
    if not path.exists():
        raise NotFoundError(f"There is no image {path.name}.")
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz", ".nrrd")):
        raise InputError(f"{path.name} is of a kind that cannot be read. Give a NIfTI (.nii, .nii.gz) or NRRD file.")
    try:
        volume = read_nrrd(path) if name.endswith(".nrrd") else read_nifti(path)
    except InputError:
        raise
    except Exception as error:  # The readers raise many kinds; each means a broken or foreign file.
        raise InputError(
            f"{path.name} cannot be read ({type(error).__name__}: {error}). The file is broken or of another kind; "
            "export it again."
        ) from error
    if 0 in volume.voxels.shape:
        raise InputError(f"{path.name} has no voxels: its shape is {volume.voxels.shape}.")
    if not np.isfinite(volume.affine).all() or abs(np.linalg.det(volume.affine)) < 1e-9:
        raise InputError(f"{path.name} has an affine that cannot be inverted. Export it again with its geometry.")
    if np.issubdtype(volume.voxels.dtype, np.floating):
        bad = int(volume.voxels.size - np.isfinite(volume.voxels).sum())
        if bad:
            raise InputError(
                f"{path.name} holds {bad} voxels that are NaN or infinite. Replace them, by the value of air say."
            )
    return volume


def read_labels(path: Path, image: Volume) -> NDArray[np.integer[Any]]:
    """Read the labels of an image, (I, J, K) integers.

    Raises:
        InputError: if they lie elsewhere than the image, or are no whole numbers.
    """
    volume = read_volume(path)
    if not volume.same_geometry(image):
        raise InputError(
            f"The label {path.name} has shape {volume.voxels.shape} and does not lie where its image does (shape "
            f"{image.voxels.shape}). Save the segmentation with the geometry of the image."
        )
    voxels = volume.voxels
    if np.issubdtype(voxels.dtype, np.floating):
        whole = np.rint(voxels)
        if not np.array_equal(whole, voxels):
            raise InputError(f"The label {path.name} holds fractions. Save a labelmap of whole numbers.")
        voxels = whole.astype(np.int32)
    return np.asarray(voxels)  # type: ignore[return-value]
