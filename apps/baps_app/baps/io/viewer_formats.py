"""Which image files a viewer can be given as they are."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import nrrd
import numpy as np
from numpy.typing import NDArray

from baps.imaging.volume import Volume
from baps.io.itk_geometry import affine_of, read_information
from baps.io.metaimage import read_metaimage_affine
from baps.io.nifti import read_nifti_affine
from baps.io.nrrd import read_nrrd_affine
from baps.io.tiff import is_tiff

_PICTURES = (".png", ".jpg", ".jpeg")


def opens_in_viewers(path: Path) -> bool:
    """Tell whether ITK, on which 3D Slicer is built, opens a file by itself and puts its voxels where we do.

    A DICOM series, a pair of files, an array and a TIFF have to be converted first, and so has a picture whose
    resolution ITK would take for the size of its pixels. So has a file that we cannot read: its conversion says why.

    Args:
        path: an image, of any kind that ``read_volume`` reads.
    """
    if not path.is_file():
        return False
    found = path.stat()
    return _opens(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=4096)
def _opens(path: Path, changed: int, size: int) -> bool:
    """For a file as it was then."""
    try:
        ours = _affine(path)
        if ours is None:
            return False
        seen = read_information(path)
        if seen.GetDimension() not in (2, 3) or seen.GetPixelIDValue() < 0:
            return False
        voxels = np.broadcast_to(np.uint8(0), (*seen.GetSize(), 1)[:3])
        return Volume(voxels, ours).same_geometry(Volume(voxels, affine_of(seen)))
    except Exception:  # The readers raise many kinds; each means that it does not open.
        return False


def _affine(path: Path) -> NDArray[np.float64] | None:
    """Where we put a file's voxels; none if it is of a kind that is always converted."""
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return read_nifti_affine(path)
    if name.endswith(".nrrd"):
        packed = str(nrrd.read_header(str(path)).get("encoding")).startswith("b")
        return None if packed else read_nrrd_affine(path)  # ITK has no bzip2.
    if name.endswith(".mha"):
        return read_metaimage_affine(path)
    return np.diag([-1.0, -1, 1, 1]) if name.endswith(_PICTURES) and not is_tiff(path) else None
