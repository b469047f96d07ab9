"""Read the geometry of an image as ITK does: it is what 3D Slicer shows, and what the labels that it saves have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK
from numpy.typing import NDArray


def read_image_information(path: Path, reader: str = "") -> SimpleITK.ImageFileReader:
    """Let ITK read the header of a file, without voxels.

    Args:
        path: path of the file.
        reader: name of ITK's reader, such as ``NiftiImageIO``, or "" to let ITK choose.

    Returns:
        The reader, which holds the header.

    Raises:
        RuntimeError: if ITK cannot open the file.
    """
    information = SimpleITK.ImageFileReader()
    information.SetImageIO(reader)
    information.SetFileName(str(path))
    information.ReadImageInformation()
    return information


def ras_affine(image: SimpleITK.Image | SimpleITK.ImageFileReader) -> NDArray[np.float64]:
    """Compute the affine of an image.

    An image of two dimensions lies in the plane z = 0 and is 1 mm thick, as ITK shows it. Dimensions after the third
    are ignored.

    Args:
        image: an image, or what ``read_image_information`` returned.

    Returns:
        Voxel index to patient position in mm (RAS), (4, 4).
    """
    dimensions = image.GetDimension()
    kept = min(dimensions, 3)
    directions = np.reshape(image.GetDirection(), (dimensions, dimensions)) * image.GetSpacing()
    affine = np.eye(4)
    affine[:kept, :kept] = directions[:kept, :kept]
    affine[:kept, 3] = image.GetOrigin()[:kept]
    affine[:2] *= -1  # LPS to RAS.
    return affine
