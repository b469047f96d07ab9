"""Resample a volume in a cube of any position, width and resolution along its axes, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Cube:
    """A cube of voxels along the axes of a volume.

    Attributes:
        first: position of its first voxel along each axis, in voxels of the volume.
        step: distance of its voxels along each axis, in voxels of the volume.
        side: number of its voxels along each side, S.
    """

    first: tuple[float, float, float]
    step: tuple[float, float, float]
    side: int

    @classmethod
    def around(cls, centre: NDArray[np.float64], width: float, spacing: tuple[float, float, float], side: int) -> Cube:
        """Place a cube around a position.

        Args:
            centre: position of its centre in voxels of the volume, (3,).
            width: width of the cube, mm.
            spacing: distance of the volume's voxels along each axis, mm.
            side: number of its voxels along each side.

        Returns:
            The cube.
        """
        step = width / side / np.asarray(spacing, float)
        x, y, z = (np.asarray(centre, float) - step * (side - 1) / 2).tolist()
        a, b, c = step.tolist()
        return cls((x, y, z), (a, b, c), side)

    def positions(self, voxels: NDArray[np.generic]) -> NDArray[np.float64]:
        """Convert positions in the volume to positions in the cube.

        Args:
            voxels: positions in voxels of the volume, (N, 3).

        Returns:
            Positions in voxels of the cube, (N, 3), also outside of it.
        """
        return np.asarray((np.asarray(voxels, float) - self.first) / self.step)

    def extract(self, voxels: NDArray[np.generic], outside: float | None = None) -> NDArray[np.float32]:
        """Resample the volume in the cube: averages where the cube's voxels are larger, else linear interpolation.

        Args:
            voxels: values, (I, J, K).
            outside: value outside the volume, or None for the smallest value of the part inside.

        Returns:
            Values in the cube, (S, S, S).
        """
        part, weights, inside = [], [], []
        for axis, size in enumerate(voxels.shape):
            positions = self.first[axis] + self.step[axis] * np.arange(self.side)
            margin = max(1.0, self.step[axis])
            low = int(np.clip(np.floor(positions[0] - margin), 0, size - 1))
            high = int(np.clip(np.ceil(positions[-1] + margin), low, size - 1)) + 1
            part.append(slice(low, high))
            weights.append(_weights(positions, np.arange(low, high), margin))
            inside.append(_inside(positions, size, self.step[axis]))
        values = _reduce(weights, voxels[tuple(part)])
        is_inside = inside[0][:, None, None] & inside[1][:, None] & inside[2]
        if outside is None:
            outside = float(values[is_inside].min()) if is_inside.any() else 0.0
        return np.where(is_inside, values, np.float32(outside))

    def insert(self, values: NDArray[np.float32], shape: tuple[int, int, int]) -> NDArray[np.float32]:
        """Resample values of the cube in a volume, by linear interpolation.

        Args:
            values: values in the cube, (S, S, S).
            shape: numbers of voxels of the volume.

        Returns:
            Values in the volume, (I, J, K); 0 outside the cube.
        """
        result = np.zeros(shape, np.float32)
        part = self.part(shape)
        result[part] = self.insert_part(values, part)
        return result

    def insert_part(self, values: NDArray[np.float32], part: tuple[slice, slice, slice]) -> NDArray[np.float32]:
        """Resample values of the cube in a part of a volume, by linear interpolation.

        Args:
            values: values in the cube, (S, S, S).
            part: the part of the volume, see ``part``.

        Returns:
            Values at the voxels of the part.
        """
        weights = []
        for one, first, step in zip(part, self.first, self.step, strict=True):
            positions = (np.arange(one.start, one.stop) - first) / step
            weights.append(_weights(positions.clip(0, self.side - 1), np.arange(self.side), 1.0))
        x, y, z = weights
        return _combine(x, y @ (values @ z.T))

    def part(self, shape: Sequence[int]) -> tuple[slice, slice, slice]:
        """Return the voxels of a volume whose centres lie in the cube.

        Args:
            shape: numbers of voxels of the volume.

        Returns:
            The range along each axis, which may be empty.
        """
        ranges = []
        for size, first, step in zip(shape, self.first, self.step, strict=True):
            low = int(np.clip(np.ceil(first - step / 2), 0, size))
            high = int(np.clip(np.floor(first + step * (self.side - 0.5)) + 1, low, size))
            ranges.append(slice(low, high))
        return ranges[0], ranges[1], ranges[2]


def _inside(positions: NDArray[np.float64], size: int, step: float) -> NDArray[np.bool_]:
    """Return which voxels of the cube show the volume along an axis: those whose centres lie in it.

    Of a volume so thin that it lies between two centres, both show it.
    """
    inside = (positions > -0.5) & (positions < size - 0.5)
    if not inside.any():
        inside = (positions > -0.5 - step / 2) & (positions < size - 0.5 + step / 2)
    return inside


def _weights(positions: NDArray[np.float64], nodes: NDArray[np.int64], margin: float) -> NDArray[np.float32]:
    """Return how much each node counts at each position, (P, N): a triangle of a half-width, which sums to 1."""
    weights = (1 - np.abs(positions[:, None] - nodes) / margin).clip(min=0)
    total = weights.sum(1, keepdims=True)
    return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0).astype(np.float32)


def _reduce(weights: list[NDArray[np.float32]], voxels: NDArray[np.generic]) -> NDArray[np.float32]:
    """Multiply each axis of a large array by the matrix of that axis, along the slowest axis in memory first.

    Volumes of 100 million voxels and more are read plane by plane, and no copy of all their voxels is made.
    """
    order = np.argsort([-abs(stride) for stride in voxels.strides], kind="stable")
    slow, middle, fast = (weights[axis] for axis in order)
    values = middle @ (_combine(slow, voxels.transpose(order)) @ fast.T)
    return np.ascontiguousarray(values.transpose(np.argsort(order)))


def _combine(matrix: NDArray[np.float32], planes: NDArray[np.generic]) -> NDArray[np.float32]:
    """Multiply the first axis of an array by a matrix with few entries in a row."""
    result = np.zeros((len(matrix), *planes.shape[1:]), np.float32)
    for row, combined in zip(matrix, result, strict=True):
        for number in np.flatnonzero(row):
            combined += np.multiply(planes[number], row[number], dtype=np.float32)
    return result
