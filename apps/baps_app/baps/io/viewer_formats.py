"""Decide which image files a viewer can open without conversion."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import nrrd
import numpy as np
from numpy.typing import NDArray

from baps.imaging.volume import Volume
from baps.io.itk_geometry import ras_affine, read_image_information
from baps.io.metaimage import read_metaimage_affine
from baps.io.nifti import read_nifti_affine
from baps.io.nrrd import read_nrrd_affine
from baps.io.tiff import is_tiff

_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")


def opens_in_viewers(path: Path) -> bool:
    """Return whether ITK, on which 3D Slicer is built, opens a file and agrees with us about its geometry.

    A DICOM series, a pair of files, an array and a TIFF must be converted first. So must a picture whose resolution ITK
    would take for the size of its pixels, and a file that we cannot read: its conversion reports the reason.

    Args:
        path: path of an image of any format that ``read_volume`` reads.

    Returns:
        True if the file needs no conversion.
    """
    if not path.is_file():
        return False
    status = path.stat()
    return _opens(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4096)
def _opens(path: Path, modified: int, size: int) -> bool:
    """Cache the result until the file changes."""
    try:
        affine = _affine(path)
        if affine is None:
            return False
        information = read_image_information(path)
        if information.GetDimension() not in (2, 3) or information.GetPixelIDValue() < 0:
            return False
        voxels = np.broadcast_to(np.uint8(0), (*information.GetSize(), 1)[:3])
        return Volume(voxels, affine).same_geometry(Volume(voxels, ras_affine(information)))
    except Exception:  # The readers raise many types; each means that the file does not open.
        return False


def _affine(path: Path) -> NDArray[np.float64] | None:
    """Return the affine of a file, or None if its format is always converted."""
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return read_nifti_affine(path)
    if name.endswith(".nrrd"):
        encoding = str(nrrd.read_header(str(path)).get("encoding"))
        return None if encoding.startswith("b") else read_nrrd_affine(path)  # ITK cannot read bzip2.
    if name.endswith(".mha"):
        return read_metaimage_affine(path)
    return np.diag([-1.0, -1, 1, 1]) if name.endswith(_PICTURE_SUFFIXES) and not is_tiff(path) else None
