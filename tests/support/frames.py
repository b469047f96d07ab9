"""Write volumes with every geometry that scanners and converters produce."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

SHAPE = (48, 40, 16)
"""Numbers of voxels along I, J, K."""

CENTRE = (20, 17, 9)
"""Voxel at the centre of the bright ball that each volume shows; no volume is its own mirror image."""


def _rotation(*degrees: float) -> NDArray[np.float64]:
    """Rotate about X, then Y, then Z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn, (a, b) = np.eye(3), [other for other in range(3) if other != axis]
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


FRAMES = {
    "lps": (np.eye(3), (1.0, 1.0, 2.0)),
    "ras": (np.diag([-1.0, -1.0, 1.0]), (1.0, 1.0, 2.0)),
    "oblique": (_rotation(20, -15, 35), (0.9, 0.9, 2.5)),
    "anisotropic": (np.diag([-1.0, 1.0, -1.0]), (0.68, 1.37, 5.0)),
    "sagittal": (np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]), (0.8, 0.8, 4.0)),
    "left_handed": (np.diag([1.0, 1.0, -1.0]), (1.0, 1.0, 3.0)),
}
"""Directions of I, J, K (columns, LPS) and spacing, mm."""

SUFFIXES = (".nii.gz", ".nrrd")


def ball() -> NDArray[np.bool_]:
    """Return the mask of the bright ball, (I, J, K)."""
    offsets = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1) - CENTRE
    inside: NDArray[np.bool_] = (np.square(offsets / (9, 8, 4)).sum(-1)) < 1
    return inside


def write_volume(folder: Path, frame: str, suffix: str) -> str:
    """Write a volume, and return its name without the suffix."""
    direction, spacing = FRAMES[frame]
    random = np.random.default_rng(0)
    voxels = np.where(ball(), 200, 60) + random.normal(0, 3, SHAPE)
    image = sitk.GetImageFromArray(voxels.round().astype(np.int16).transpose())
    image.SetDirection(direction.flatten().tolist())
    image.SetSpacing(spacing)
    image.SetOrigin((-83.25, 41.5, -712.125))
    name = f"{frame}_{suffix.split('.')[1]}"
    sitk.WriteImage(image, str(folder / f"{name}{suffix}"))
    return name
