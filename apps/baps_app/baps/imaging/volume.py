"""Hold a volume in memory: its voxels and their position in the patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_GEOMETRY_TOLERANCE = 0.1
"""Largest distance, in voxels, at which two volumes share a geometry. Files store geometry in single precision."""


@dataclass(frozen=True)
class Volume:
    """A three-dimensional image. A picture is a volume of a single slice.

    Attributes:
        voxels: grey values of any numeric type, (I, J, K), or colour (red, green, blue), (I, J, K, 3) uint8; in the
            order of the file, as viewers index it.
        affine: voxel index to patient position in mm (RAS), (4, 4).
        notes: sentences for the user on what the file does not say, or what was changed to show it.
    """

    voxels: NDArray[np.generic]
    affine: NDArray[np.float64]
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of voxels along I, J, K."""
        i, j, k = self.voxels.shape[:3]
        return i, j, k

    @property
    def colour(self) -> bool:
        """Whether each voxel holds red, green and blue rather than one grey value."""
        return self.voxels.ndim == 4

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along I, J, K, mm."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @property
    def slice_normal(self) -> NDArray[np.float64]:
        """Unit vector perpendicular to the slices, towards increasing K, (3,) RAS.

        With a tilted gantry it differs from the direction of K.
        """
        normal = np.cross(self.affine[:3, 0], self.affine[:3, 1])
        return np.asarray(normal * np.sign(normal @ self.affine[:3, 2]) / np.linalg.norm(normal))

    def same_geometry(self, other: Volume) -> bool:
        """Return whether both volumes have the same shape and each voxel the same position, within a tenth of a voxel.

        The eight corners are compared, which holds for all voxels between them. The thickness of a single slice is
        ignored.

        Args:
            other: the other volume.

        Returns:
            True if the geometries agree.
        """
        if self.shape != other.shape:
            return False
        corners = np.stack(np.meshgrid(*[(0, size - 1) for size in self.shape], indexing="ij")).reshape(3, -1)
        positions = other.affine @ np.vstack([corners, np.ones(corners.shape[1])])
        offsets = np.linalg.solve(self.affine, positions)[:3] - corners
        return bool((np.abs(offsets) < _GEOMETRY_TOLERANCE).all())
