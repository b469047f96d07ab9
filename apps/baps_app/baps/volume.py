"""A volume in memory: voxels, and where they lie in the patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SAME_PLACE = 1e-2
"""Two affines are the same if no entry differs by more (mm; files keep them in single precision)."""


@dataclass(frozen=True)
class Volume:
    """A three-dimensional image; a picture is one of a single slice.

    Attributes:
        voxels: (I, J, K) grey values of any numeric type, or (I, J, K, 3) uint8 colour (red, green, blue); in the order
            of the file, as the viewers index it.
        affine: (4, 4), voxel index to patient position, mm, RAS.
    """

    voxels: NDArray[np.generic]
    affine: NDArray[np.float64]

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
        """Whether both have the same shape at the same place."""
        return self.shape == other.shape and bool(np.allclose(self.affine, other.affine, rtol=0, atol=_SAME_PLACE))
