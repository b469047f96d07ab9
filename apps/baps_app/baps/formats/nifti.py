"""NIfTI files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nibabel
import numpy as np

from ..errors import InputError
from ..volume import Volume
from .shape import three_dimensional


def read_nifti(path: Path) -> Volume:
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
    return Volume(three_dimensional(voxels, path.name), np.asarray(image.affine, np.float64))


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
