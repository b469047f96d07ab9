"""Volumes on disk and in memory: voxels, and where they lie in the patient."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
from numpy.typing import NDArray

from .errors import InputError, NotFoundError

_SAME_PLACE = 1e-2
"""Two affines are the same if no entry differs by more (mm; files keep them in single precision)."""


@dataclass(frozen=True)
class Volume:
    """A three-dimensional image.

    Attributes:
        voxels: (I, J, K), in the order of the file, as the viewers index it.
        affine: (4, 4), voxel index to patient position, mm, RAS.
    """

    voxels: NDArray[np.generic]
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along I, J, K, mm."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    def same_geometry(self, other: Volume) -> bool:
        """Whether both have the same shape at the same place."""
        return self.voxels.shape == other.voxels.shape and bool(
            np.allclose(self.affine, other.affine, rtol=0, atol=_SAME_PLACE)
        )


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
        volume = _read_nrrd(path) if name.endswith(".nrrd") else _read_nifti(path)
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


def _three_dimensional(voxels: NDArray[np.generic], name: str) -> NDArray[np.generic]:
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim != 3:
        raise InputError(
            f"{name} has {voxels.ndim} dimensions (shape {voxels.shape}); a volume has three. "
            "Export one time point or one channel alone."
        )
    return voxels


def _read_nifti(path: Path) -> Volume:
    image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Image):
        raise InputError(f"{path.name} is no NIfTI file.")
    if image.header["sform_code"] == 0 and image.header["qform_code"] == 0:
        raise InputError(
            f"{path.name} has no affine (its sform and qform codes are 0), so nobody can say where it lies in the "
            "patient. Export it again with its geometry."
        )
    slope = image.dataobj.slope, image.dataobj.inter
    # A copy: an uncompressed file would be mapped, and change under whoever keeps the volume.
    voxels = np.array(image.dataobj.get_unscaled() if slope == (1, 0) else image.dataobj)
    if voxels.dtype == np.float64:
        voxels = voxels.astype(np.float32)
    if voxels.dtype.kind not in "iuf":
        raise InputError(f"{path.name} holds values of type {voxels.dtype}; grey values are needed.")
    return Volume(_three_dimensional(voxels, path.name), np.asarray(image.affine, np.float64))


_TO_RAS = {
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
}


def _read_nrrd(path: Path) -> Volume:
    voxels, header = nrrd.read(str(path))
    space = str(header.get("space", "")).lower()
    directions, origin = header.get("space directions"), header.get("space origin")
    if space not in _TO_RAS or directions is None or origin is None:
        raise InputError(f"{path.name} has no affine (space, space directions and space origin). Export it again.")
    rows = np.asarray(directions, float)
    rows = rows[np.isfinite(rows).all(1)]  # An axis that is no direction in space, of channels say, has none.
    if rows.shape != (3, 3):
        raise InputError(f"{path.name} has {len(rows)} directions in space; a volume has three. Export one alone.")
    affine = np.eye(4)
    affine[:3, :3] = rows.T
    affine[:3, 3] = origin
    affine[:3] *= np.array(_TO_RAS[space])[:, None]
    return Volume(_three_dimensional(voxels, path.name), affine)


def write_nrrd(path: Path, volume: Volume, compress: bool = True) -> None:
    """Write a mask as NRRD, in the voxel order of the volume.

    Args:
        path: the file; an older one is replaced.
        volume: the mask; its voxels keep their type.
        compress: gzip at its fastest, or raw (as OHIF needs it).
    """
    affine = volume.affine.copy()
    affine[:2] *= -1  # RAS to LPS, which every reader of NRRD knows.
    header = {
        "space": "left-posterior-superior",
        "space directions": affine[:3, :3].T,
        "space origin": affine[:3, 3],
        "kinds": ["domain"] * 3,
        "encoding": "gzip" if compress else "raw",
    }
    nrrd.write(str(path), volume.voxels, header, compression_level=1)


def write_nifti(path: Path, volume: Volume) -> None:
    """Write a NIfTI file; it appears under its name only when it is whole."""
    image = nibabel.Nifti1Image(volume.voxels, volume.affine)
    image.header.set_xyzt_units("mm")
    suffix = ".nii.gz" if path.name.endswith(".gz") else ".nii"
    handle, partial = tempfile.mkstemp(suffix=suffix, dir=path.parent)
    os.close(handle)
    try:
        nibabel.save(image, partial)
        Path(partial).chmod(0o644)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


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
