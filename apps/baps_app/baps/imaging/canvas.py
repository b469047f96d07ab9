"""Map a slice of a volume to the square canvas that a black box sees, and back.

A slice is perpendicular to one axis of the volume. Its first remaining axis runs along X (columns), the second along Y
(rows), as in the file. The canvas shows the slice as a radiologist sees it, however the file stores it: the patient's
left is on the right, and the front or the head is on top. The canvas is square. The slice lies in its upper left
corner, resized so that pixels are as wide as they are high in millimetres, and the rest is black.
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
"""Axis of the voxel array by its name."""

SLICE_AXIS = AXES["K"]
"""Axis along which slices are stored. Adapters are trained, checked and served on slices perpendicular to it."""

_PATIENT_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Axis of the patient (RAS) that a plane is perpendicular to."""

AS_STORED = "as stored"
"""Name of the plane in which the scanner stored the slices: perpendicular to K."""

PLANES = (AS_STORED, "axial", "coronal", "sagittal", *AXES)
"""Names of the planes that ``plane_axis`` accepts."""


def plane_axis(affine: NDArray[np.float64], plane: str) -> int:
    """Return the axis of a volume that the slices of a plane are perpendicular to.

    Args:
        affine: voxel index to patient position in mm (RAS), (4, 4).
        plane: one of ``PLANES``, or an empty text for the stored plane.

    Returns:
        The axis, 0 to 2. For an oblique volume it is the nearest one.

    Raises:
        InputError: if there is no such plane.
    """
    if plane in ("", AS_STORED):
        return AXES["K"]
    if plane in AXES:
        return AXES[plane]
    if plane not in _PATIENT_AXES:
        raise InputError(f"There is no plane {plane!r}. Known ones: {', '.join(PLANES)}.")
    return int(np.flatnonzero(nibabel.io_orientation(affine)[:, 0] == _PATIENT_AXES[plane])[0])


@dataclass(frozen=True)
class Plane:
    """One slice of a volume.

    Attributes:
        axis: axis that the slice is perpendicular to, 0 to 2.
        index: index of the slice along that axis.
    """

    axis: int
    index: int

    def extract(self, voxels: NDArray[Any]) -> NDArray[Any]:
        """Copy the slice out of a volume.

        Args:
            voxels: voxels of the volume, (I, J, K), or (I, J, K, 3) in colour.

        Returns:
            The slice, (rows, columns) or (rows, columns, 3).

        Raises:
            InputError: if the slice lies outside the volume.
        """
        if not 0 <= self.index < voxels.shape[self.axis]:
            raise InputError(
                f"Slice {self.index} lies outside the volume, which has slices 0 to {voxels.shape[self.axis] - 1}."
            )
        return voxels[self._index].swapaxes(0, 1).copy()  # np.take would reorder the whole volume.

    def insert(self, voxels: NDArray[Any], values: NDArray[Any]) -> None:
        """Write a slice into a volume, in place.

        Args:
            voxels: voxels of the volume, (I, J, K).
            values: values of the slice, (rows, columns).
        """
        voxels[self._index] = values.T

    @property
    def _index(self) -> tuple[slice | int, ...]:
        return tuple(self.index if axis == self.axis else slice(None) for axis in range(3))

    def project(self, voxel: tuple[float, float, float]) -> tuple[float, float]:
        """Project a voxel index onto the slice.

        Args:
            voxel: voxel index (i, j, k).

        Returns:
            (X, Y) in pixels of the slice.
        """
        x, y = (value for axis, value in enumerate(voxel) if axis != self.axis)
        return x, y


@dataclass(frozen=True)
class Canvas:
    """Position of a slice on the square canvas.

    Attributes:
        image_size: width and height of the canvas, pixels.
        rows: height of the slice, pixels.
        columns: width of the slice, pixels.
        height: height of the slice on the canvas, pixels.
        width: width of the slice on the canvas, pixels.
        transposed: whether rows of the slice are columns of the canvas.
        flip_x: whether left and right are exchanged, after transposing.
        flip_y: whether top and bottom are exchanged, after transposing.
    """

    image_size: int
    rows: int
    columns: int
    height: int
    width: int
    transposed: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @classmethod
    def fit(cls, volume: Volume, plane: Plane, image_size: int) -> Canvas:
        """Fit a slice of a volume onto a canvas.

        Args:
            volume: the volume.
            plane: the slice.
            image_size: width and height of the canvas, pixels.

        Returns:
            The position of the slice on the canvas.
        """
        x, y = (axis for axis in range(3) if axis != plane.axis)
        # For each axis of the volume: the nearest patient axis (RAS), and its sign.
        orientation = nibabel.io_orientation(volume.affine)
        transposed = bool(orientation[x, 0] > orientation[y, 0])
        across, down = (y, x) if transposed else (x, y)
        # X runs to the patient's left, or to the back on a sagittal slice; Y runs to the back, or else to the feet.
        flip_x, flip_y = bool(orientation[across, 1] > 0), bool(orientation[down, 1] > 0)
        wide, high = (volume.shape[axis] * volume.spacing[axis] for axis in (across, down))
        scale = image_size / max(wide, high)
        height, width = (min(image_size, max(1, round(length * scale))) for length in (high, wide))
        return cls(image_size, volume.shape[y], volume.shape[x], height, width, transposed, flip_x, flip_y)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the slice on the canvas, pixels. The rest of the canvas is padding."""
        return self.height, self.width

    @property
    def scale(self) -> tuple[float, float]:
        """Factors from pixels of the slice to pixels of the canvas, along X and Y of the slice."""
        return (self._oriented_size[1] / self.columns, self._oriented_size[0] / self.rows)

    @property
    def _oriented_size(self) -> tuple[int, int]:
        """Height and width on the canvas, along the rows and columns of the slice."""
        return (self.width, self.height) if self.transposed else (self.height, self.width)

    def draw(self, pixels: NDArray[np.generic]) -> NDArray[np.float32]:
        """Draw a slice on the canvas.

        Args:
            pixels: the slice, (rows, columns).

        Returns:
            The canvas, (image_size, image_size); pixels beside the slice are 0.
        """
        oriented = pixels.T if self.transposed else pixels
        oriented = oriented[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]
        drawn = np.zeros((self.image_size, self.image_size), np.float32)
        drawn[: self.height, : self.width] = _resize(oriented, self.height, self.width)
        return drawn

    def restore(self, drawn: NDArray[np.float32]) -> NDArray[np.float32]:
        """Resample values on the canvas to the pixels of the slice.

        Args:
            drawn: values on the canvas, (image_size, image_size).

        Returns:
            Values on the slice, (rows, columns).
        """
        oriented = drawn[: self.height, : self.width]
        oriented = oriented[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]
        return _resize(oriented.T if self.transposed else oriented, self.rows, self.columns)

    def to_canvas(self, point: tuple[float, float]) -> tuple[float, float]:
        """Map a point of the slice to the canvas.

        Args:
            point: (X, Y) in pixels of the slice; (0, 0) is the centre of the first pixel.

        Returns:
            (X, Y) in pixels of the canvas.
        """
        x, y = ((value + 0.5) * factor - 0.5 for value, factor in zip(point, self.scale, strict=True))
        if self.transposed:
            x, y = y, x
        return (self.width - 1 - x if self.flip_x else x, self.height - 1 - y if self.flip_y else y)


def _resize(pixels: NDArray[np.generic], height: int, width: int) -> NDArray[np.float32]:
    source = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
    if source.shape == (height, width):
        return source.numpy()
    # PyTorch's antialiased resize repeats the first row of an image of width 1. Average two columns instead.
    wide = source.repeat(1, 2) if source.shape[1] == 1 else source
    size = (height, max(2, width))
    resized = F.interpolate(wide[None, None], size, mode="bilinear", align_corners=False, antialias=True)[0, 0]
    return (resized.mean(1, keepdim=True) if width == 1 else resized).numpy()
