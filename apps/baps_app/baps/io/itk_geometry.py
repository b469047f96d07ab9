"""Where ITK puts an image: the geometry that 3D Slicer shows and that the labels it saves have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK
from numpy.typing import NDArray


def read_information(path: Path, reader: str = "") -> SimpleITK.ImageFileReader:
    """Have ITK read the header of a file, not its voxels.

    Args:
        path: the file.
        reader: the name of ITK's reader, ``NiftiImageIO`` say; ITK chooses if there is none.

    Raises:
        RuntimeError: if ITK cannot open it.
    """
    information = SimpleITK.ImageFileReader()
    information.SetImageIO(reader)
    information.SetFileName(str(path))
    information.ReadImageInformation()
    return information


def affine_of(image: SimpleITK.Image | SimpleITK.ImageFileReader) -> NDArray[np.float64]:
    """The affine, RAS and mm, of an image or of what ``read_information`` gives.

    Two dimensions lie in the plane z = 0 and are 1 mm thick, as ITK shows them; of more than three, three count.
    """
    dimensions = image.GetDimension()
    kept = min(dimensions, 3)
    directions = np.reshape(image.GetDirection(), (dimensions, dimensions)) * image.GetSpacing()
    affine = np.eye(4)
    affine[:kept, :kept] = directions[:kept, :kept]
    affine[:kept, 3] = image.GetOrigin()[:kept]
    affine[:2] *= -1  # LPS to RAS.
    return affine
