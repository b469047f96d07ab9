"""Represent prompts in a volume: points, boxes, scribbles and lassos, on any slice across any axis.

Voxels are indices of the array, in the order of its axes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from baps.errors import InputError

Triple = tuple[int, int, int]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class VolumePoint:
    """A click.

    Attributes:
        voxel: index along each axis.
        include: whether the object is there; otherwise it is not.
    """

    voxel: Triple
    include: bool

    @property
    def nbytes(self) -> int:
        """Memory that it takes, bytes."""
        return 0

    @property
    def flat_axis(self) -> int | None:
        """None: a point lies in a plane across every axis."""
        return None

    def moved(self, order: Sequence[int]) -> VolumePoint:
        """Convert the point to an array with the axes of this one in another order.

        Args:
            order: axes of this array that are the axes of the other one.

        Returns:
            The same point in the other array.
        """
        return VolumePoint(triple(self.voxel[axis] for axis in order), self.include)


@dataclass(frozen=True)
class VolumeBox:
    """A box. One that is one voxel thick along an axis lies in a slice across it.

    Attributes:
        low: first voxel along each axis.
        high: voxel after the last one along each axis.
        include: whether the object is in it; otherwise nothing of the object is.
    """

    low: Triple
    high: Triple
    include: bool

    @property
    def nbytes(self) -> int:
        """Memory that it takes, bytes."""
        return 0

    @property
    def flat_axis(self) -> int | None:
        """Axis along which it is one voxel thick, or None if there is none, or more than one."""
        return _flat_axis(np.subtract(self.high, self.low))

    def moved(self, order: Sequence[int]) -> VolumeBox:
        """Convert the box to an array with the axes of this one in another order.

        Args:
            order: axes of this array that are the axes of the other one.

        Returns:
            The same box in the other array.
        """
        low, high = (triple(corner[axis] for axis in order) for corner in (self.low, self.high))
        return VolumeBox(low, high, self.include)


@dataclass(frozen=True)
class VolumeRegion:
    """Painted voxels: a scribble along the object, or a lasso around it.

    Attributes:
        low: first voxel of the part that is painted, along each axis.
        shape: size of that part.
        bits: the painted voxels of that part, eight to a byte.
        lasso: whether it is a lasso, which is filled; otherwise it is a scribble.
        include: whether the object is there; otherwise it is not.
    """

    low: Triple
    shape: Triple
    bits: NDArray[np.uint8]
    lasso: bool
    include: bool

    @classmethod
    def of(cls, painted: NDArray[np.generic], low: Triple, lasso: bool, include: bool) -> VolumeRegion:
        """Pack painted voxels.

        Args:
            painted: non-zero where painted, (X, Y, Z).
            low: position of its first voxel in the volume.
            lasso: whether it is a lasso.
            include: whether the object is there.

        Returns:
            The region.

        Raises:
            InputError: if nothing is painted.
        """
        where = bounding_box(painted != 0)
        if where is None:
            raise InputError(f"The {'lasso' if lasso else 'scribble'} is empty. Draw it on the image.")
        part = painted[where] != 0
        start = triple(first + one.start for first, one in zip(low, where, strict=True))
        return cls(start, triple(part.shape), np.packbits(part), lasso, include)

    @property
    def nbytes(self) -> int:
        """Memory that it takes, bytes."""
        return self.bits.nbytes

    @property
    def flat_axis(self) -> int | None:
        """Axis across whose slice it was painted, or None if it has several slices across each axis."""
        return _flat_axis(self.shape)

    def moved(self, order: Sequence[int]) -> VolumeRegion:
        """Convert the region to an array with the axes of this one in another order.

        Args:
            order: axes of this array that are the axes of the other one.

        Returns:
            The same region in the other array.
        """
        low, shape = (triple(values[axis] for axis in order) for values in (self.low, self.shape))
        return VolumeRegion(low, shape, np.packbits(self.unpack().transpose(order)), self.lasso, self.include)

    @property
    def part(self) -> tuple[slice, slice, slice]:
        """Range of the painted part along each axis."""
        x, y, z = (slice(low, low + size) for low, size in zip(self.low, self.shape, strict=True))
        return x, y, z

    def unpack(self) -> Mask:
        """Unpack the painted voxels.

        Returns:
            The painted part, of its shape.
        """
        return np.unpackbits(self.bits, count=int(np.prod(self.shape))).reshape(self.shape).view(bool)


ClickOrBox = VolumePoint | VolumeBox
"""What a viewer without scribbles sends."""

VolumePrompt = ClickOrBox | VolumeRegion


def bounding_box(mask: Mask) -> tuple[slice, slice, slice] | None:
    """Find the smallest box around the marked voxels of a mask.

    Args:
        mask: (X, Y, Z).

    Returns:
        The range along each axis, or None if nothing is marked.
    """
    ranges = []
    for axis in range(3):
        marked = np.flatnonzero(mask.any(tuple(other for other in range(3) if other != axis)))
        if not marked.size:
            return None
        ranges.append(slice(int(marked[0]), int(marked[-1]) + 1))
    return ranges[0], ranges[1], ranges[2]


def fill_lasso(painted: Mask, axis: int) -> Mask:
    """Fill what a lasso encloses on each slice across an axis. Programs send it filled or as a line.

    Args:
        painted: (X, Y, Z).
        axis: the axis across which it was drawn.

    Returns:
        The lasso with its inside, (X, Y, Z).
    """
    slices = np.moveaxis(painted, axis, 0)
    filled = np.stack([ndimage.binary_fill_holes(one) for one in slices])
    return np.moveaxis(filled, 0, axis)


def _flat_axis(sides: Sequence[int] | NDArray[np.generic]) -> int | None:
    flat = [axis for axis in range(3) if sides[axis] == 1]
    return flat[0] if len(flat) == 1 else None


def triple(values: Iterable[int]) -> Triple:
    """Convert three numbers.

    Args:
        values: the numbers.

    Returns:
        The numbers as a tuple.
    """
    x, y, z = (int(value) for value in values)
    return x, y, z
