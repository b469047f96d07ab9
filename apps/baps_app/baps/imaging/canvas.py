"""From a volume to the square canvas that a black box sees, and back.

A slice is cut across one axis of the volume. Its first remaining axis runs along X (columns), the second along Y
(rows), as the file has them. The canvas shows the slice as a radiologist sees it, however the file stores it: the
patient's left on the right, the front or the head on top. It is square; the slice lies in its upper left corner,
resized so that pixels are as wide as they are high in millimetres, and the rest is black.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from baps.errors import InputError
from baps.imaging.volume import Volume

AXES = {"I": 0, "J": 1, "K": 2}

SLICE_AXIS = AXES["K"]
"""Slices are stored along it. Adapters are trained, checked and served across it."""
"""Names of the axes that slices are cut across; K is the usual one (axial for most scanners)."""

_ACROSS = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Which axis of the patient (RAS) a plane is cut across."""

AS_STORED = "as stored"
"""The plane that the scanner made: across K."""

PLANES = (AS_STORED, "axial", "coronal", "sagittal", *AXES)
"""Names that ``axis_across`` knows."""


def axis_across(affine: NDArray[np.float64], plane: str) -> int:
    """The axis of the volume (0 to 2) that slices of a plane are cut across, the nearest one where it is oblique.

    Raises:
        InputError: if there is no such plane.
    """
    if plane in ("", AS_STORED):
        return AXES["K"]
    if plane in AXES:
        return AXES[plane]
    if plane not in _ACROSS:
        raise InputError(f"There is no plane {plane!r}. Known ones: {', '.join(PLANES)}.")
    return int(np.flatnonzero(nibabel.io_orientation(affine)[:, 0] == _ACROSS[plane])[0])


@dataclass(frozen=True)
class Plane:
    """One slice of a volume: the axis it is cut across and the index on it."""

    axis: int
    index: int

    def of(self, voxels: NDArray[Any]) -> NDArray[Any]:
        """A copy of the slice (rows, columns) of a volume (I, J, K); (rows, columns, 3) of one in colour.

        Raises:
            InputError: if the slice lies outside the volume.
        """
        if not 0 <= self.index < voxels.shape[self.axis]:
            raise InputError(
                f"Slice {self.index} lies outside the volume, which has slices 0 to {voxels.shape[self.axis] - 1}."
            )
        return voxels[self._where].swapaxes(0, 1).copy()  # np.take would bring the whole volume into another order.

    def put(self, voxels: NDArray[Any], values: NDArray[Any]) -> None:
        """Write a slice (rows, columns) into a volume (I, J, K), in place."""
        voxels[self._where] = values.T

    @property
    def _where(self) -> tuple[slice | int, ...]:
        return tuple(self.index if axis == self.axis else slice(None) for axis in range(3))

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
        transposed: the slice's rows are the canvas's columns.
        mirrored, upended: then left and right, then top and bottom are exchanged.
    """

    side: int
    rows: int
    columns: int
    height: int
    width: int
    transposed: bool = False
    mirrored: bool = False
    upended: bool = False

    @classmethod
    def fit(cls, volume: Volume, plane: Plane, side: int) -> Canvas:
        """The canvas for a slice of a volume."""
        x, y = (axis for axis in range(3) if axis != plane.axis)
        towards = nibabel.io_orientation(volume.affine)  # of each axis: which one of RAS, and its sign
        transposed = bool(towards[x, 0] > towards[y, 0])
        across, down = (y, x) if transposed else (x, y)
        # X runs to the patient's left (of a sagittal slice: to the back), Y to the back (else: to the feet).
        mirrored, upended = bool(towards[across, 1] > 0), bool(towards[down, 1] > 0)
        wide, high = (volume.shape[axis] * volume.spacing[axis] for axis in (across, down))
        scale = side / max(wide, high)
        height, width = (min(side, max(1, round(length * scale))) for length in (high, wide))
        return cls(side, volume.shape[y], volume.shape[x], height, width, transposed, mirrored, upended)

    @property
    def scale(self) -> tuple[float, float]:
        """Factors from pixels of the slice to pixels of the canvas, along X and Y of the slice."""
        return (self._turned[1] / self.columns, self._turned[0] / self.rows)

    @property
    def _turned(self) -> tuple[int, int]:
        """Height and width on the canvas, as the slice has them."""
        return (self.width, self.height) if self.transposed else (self.height, self.width)

    def draw(self, pixels: NDArray[np.generic]) -> NDArray[np.float32]:
        """A slice (rows, columns) on the canvas, (side, side)."""
        turned = pixels.T if self.transposed else pixels
        turned = turned[:: -1 if self.upended else 1, :: -1 if self.mirrored else 1]
        drawn = np.zeros((self.side, self.side), np.float32)
        drawn[: self.height, : self.width] = _resize(turned, self.height, self.width)
        return drawn

    def restore(self, drawn: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the canvas (side, side) says at each pixel of the slice, (rows, columns)."""
        turned = drawn[: self.height, : self.width]
        turned = turned[:: -1 if self.upended else 1, :: -1 if self.mirrored else 1]
        return _resize(turned.T if self.transposed else turned, self.rows, self.columns)

    def place(self, point: tuple[float, float]) -> tuple[float, float]:
        """Map a point of the slice to the canvas.

        Args:
            point: (X, Y) in pixels of the slice; (0, 0) is the centre of the first pixel.

        Returns:
            (X, Y) in pixels of the canvas.
        """
        x, y = ((value + 0.5) * factor - 0.5 for value, factor in zip(point, self.scale, strict=True))
        if self.transposed:
            x, y = y, x
        return (self.width - 1 - x if self.mirrored else x, self.height - 1 - y if self.upended else y)


def _resize(pixels: NDArray[np.generic], height: int, width: int) -> NDArray[np.float32]:
    source = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
    if source.shape == (height, width):
        return source.numpy()
    # PyTorch's resize repeats the first row of what is one pixel wide; two columns, averaged, are the same and safe.
    wide = source.repeat(1, 2) if source.shape[1] == 1 else source
    size = (height, max(2, width))
    resized = F.interpolate(wide[None, None], size, mode="bilinear", align_corners=False, antialias=True)[0, 0]
    return (resized.mean(1, keepdim=True) if width == 1 else resized).numpy()
