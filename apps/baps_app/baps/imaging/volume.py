"""A volume in memory: voxels, and where they lie in the patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SAME_PLACE = 0.1
"""Two volumes lie at the same place if no voxel is further off, in voxels; files keep geometry in single precision."""


@dataclass(frozen=True)
class Volume:
    """A three-dimensional image; a picture is one of a single slice.

    Attributes:
        voxels: (I, J, K) grey values of any numeric type, or (I, J, K, 3) uint8 colour (red, green, blue); in the order
            of the file, as the viewers index it.
        affine: (4, 4), voxel index to patient position, mm, RAS.
        notes: sentences on what the file does not say, or what was changed to show it.
    """

    voxels: NDArray[np.generic]
    affine: NDArray[np.float64]
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along I, J, K."""
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
        """Unit vector across the slices in the direction of K, (3,), RAS; on a tilted gantry it is not that of K."""
        normal = np.cross(self.affine[:3, 0], self.affine[:3, 1])
        return np.asarray(normal * np.sign(normal @ self.affine[:3, 2]) / np.linalg.norm(normal))

    def same_geometry(self, other: Volume) -> bool:
        """Whether both have the same shape, and each voxel lies where that of the other does, within a tenth of one.

        That holds of all voxels if it holds of those in the eight corners. How thick a single slice is does not count.
        """
        if self.shape != other.shape:
            return False
        corners = np.stack(np.meshgrid(*[(0, size - 1) for size in self.shape], indexing="ij")).reshape(3, -1)
        there = other.affine @ np.vstack([corners, np.ones(corners.shape[1])])
        off = np.linalg.solve(self.affine, there)[:3] - corners
        return bool((np.abs(off) < _SAME_PLACE).all())
