"""From a volume to the square canvas that a black box sees, and back.

A slice is cut across one axis of the volume. Its first remaining axis runs along X (columns), the second along Y
(rows). The canvas is square; the slice lies in its upper left corner, resized so that pixels are as wide as they are
high in millimetres, and the rest is black.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from .errors import InputError
from .volume import Volume

AXES = {"I": 0, "J": 1, "K": 2}
"""Names of the axes that slices are cut across; K is the usual one (axial for most scanners)."""


@dataclass(frozen=True)
class Plane:
    """One slice of a volume: the axis it is cut across and the index on it."""

    axis: int
    index: int

    def of(self, voxels: NDArray[Any]) -> NDArray[Any]:
        """The slice (rows, columns) of a volume (I, J, K).

        Raises:
            InputError: if the slice lies outside the volume.
        """
        if not 0 <= self.index < voxels.shape[self.axis]:
            raise InputError(
                f"Slice {self.index} lies outside the volume, which has slices 0 to {voxels.shape[self.axis] - 1}."
            )
        return np.take(voxels, self.index, self.axis).T

    def put(self, voxels: NDArray[Any], values: NDArray[Any]) -> None:
        """Write a slice (rows, columns) into a volume (I, J, K), in place."""
        where: list[slice | int] = [slice(None)] * 3
        where[self.axis] = self.index
        voxels[tuple(where)] = values.T

    def flatten(self, voxel: tuple[float, float, float]) -> tuple[float, float]:
        """A voxel index (i, j, k) as (X, Y) on the slice, pixels."""
        x, y = (value for axis, value in enumerate(voxel) if axis != self.axis)
        return x, y


@dataclass(frozen=True)
class Canvas:
    """How a slice lies on the square canvas.

    Attributes:
        side: of the canvas, pixels.
        rows, columns: of the slice, pixels.
        height, width: of the slice on the canvas, pixels.
    """

    side: int
    rows: int
    columns: int
    height: int
    width: int

    @classmethod
    def fit(cls, volume: Volume, plane: Plane, side: int) -> Canvas:
        """The canvas for a slice of a volume."""
        columns, rows = (size for axis, size in enumerate(volume.voxels.shape) if axis != plane.axis)
        step_x, step_y = (step for axis, step in enumerate(volume.spacing) if axis != plane.axis)
        scale = side / max(columns * step_x, rows * step_y)
        height = min(side, max(1, round(rows * step_y * scale)))
        width = min(side, max(1, round(columns * step_x * scale)))
        return cls(side, rows, columns, height, width)

    @property
    def scale(self) -> tuple[float, float]:
        """Factors from pixels of the slice to pixels of the canvas, along X and Y."""
        return self.width / self.columns, self.height / self.rows

    def draw(self, pixels: NDArray[np.generic]) -> NDArray[np.float32]:
        """A slice (rows, columns) on the canvas, (side, side)."""
        drawn = np.zeros((self.side, self.side), np.float32)
        drawn[: self.height, : self.width] = _resize(pixels, self.height, self.width)
        return drawn

    def restore(self, drawn: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the canvas (side, side) says at each pixel of the slice, (rows, columns)."""
        return _resize(drawn[: self.height, : self.width], self.rows, self.columns)


def _resize(pixels: NDArray[np.generic], height: int, width: int) -> NDArray[np.float32]:
    source = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
    if source.shape == (height, width):
        return source.numpy()
    # PyTorch's resize repeats the first row of what is one pixel wide; two columns, averaged, are the same and safe.
    wide = source.repeat(1, 2) if source.shape[1] == 1 else source
    size = (height, max(2, width))
    resized = F.interpolate(wide[None, None], size, mode="bilinear", align_corners=False, antialias=True)[0, 0]
    return (resized.mean(1, keepdim=True) if width == 1 else resized).numpy()
