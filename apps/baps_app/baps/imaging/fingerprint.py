"""Recognise an image by its voxel values, in whatever order and direction of its axes a program holds it.

A fingerprint is made of hashes only, so the image cannot be computed from it. Values are compared as numbers of single
precision: their type, and how the array lies in memory, make no difference.

An image has up to 48 orientations (6 orders of its axes, 8 combinations of reversed ones). To find the right one
without hashing each of them, the sums of the values of each plane are compared first: along an axis, they are the same
sequence in every orientation, forwards or backwards.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)
Texts = tuple[str, str, str]

_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


@dataclass(frozen=True)
class Orientation:
    """How the axes of one array lie in another array of the same image.

    Attributes:
        order: for each axis of the other array, the axis of this one.
        flipped: whether each axis of the other array runs against that of this one.
    """

    order: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]

    def apply(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """Return a view with the axes of the other array.

        Args:
            array: values, (I, J, K) or (I, J, K, 3).

        Returns:
            The same values, (X, Y, Z) or (X, Y, Z, 3).
        """
        return array.transpose(*self.order, *range(3, array.ndim))[self._steps]

    def undo(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """Return a view with the axes of this array.

        Args:
            array: values, (X, Y, Z).

        Returns:
            The same values, (I, J, K).
        """
        return array[self._steps].transpose(np.argsort(self.order))

    @property
    def _steps(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1 if one else 1) for one in self.flipped)


@dataclass(frozen=True)
class PlaneSums:
    """Hashes of the sums of an image's planes. Images that differ in them are different.

    Attributes:
        shape: size along each axis, and of the channels of colour.
        forwards: hash of the sums along each axis.
        backwards: hash of the sums along each axis in reverse.
    """

    shape: tuple[int, ...]
    forwards: Texts
    backwards: Texts

    @classmethod
    def of(cls, voxels: NDArray[Any]) -> PlaneSums:
        """Compute the sums in one pass.

        Args:
            voxels: values, (I, J, K) or (I, J, K, 3).

        Returns:
            Their hashes.
        """
        i, j, k = _plane_sums(voxels)
        return cls(voxels.shape, (_hash(i), _hash(j), _hash(k)), (_hash(i[::-1]), _hash(j[::-1]), _hash(k[::-1])))


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of an image to recognise it.

    Attributes:
        shape: size along each axis, and of the channels of colour.
        sha256: hash of the shape and of the values.
        axes: hash of the sums of the planes along each axis.
    """

    shape: tuple[int, ...]
    sha256: str
    axes: Texts

    @classmethod
    def of(cls, voxels: NDArray[Any]) -> Fingerprint:
        """Compute the fingerprint of an image.

        Args:
            voxels: values, (X, Y, Z) or (X, Y, Z, 3).

        Returns:
            The fingerprint.
        """
        return cls(voxels.shape, _sha256(voxels), PlaneSums.of(voxels).forwards)

    def possible_orientations(self, image: PlaneSums) -> list[Orientation]:
        """List the orientations in which an image may be the one of the fingerprint, without its values.

        Args:
            image: the sums of the image.

        Returns:
            The orientations; axes with one voxel have one direction and change places with nothing.
        """
        found: list[Orientation] = []
        seen: set[tuple[int, ...]] = set()
        for order in _ORDERS:
            visible = tuple(axis for axis in order if image.shape[axis] > 1)
            if (*(image.shape[axis] for axis in order), *image.shape[3:]) != self.shape or visible in seen:
                continue
            seen.add(visible)
            x, y, z = (
                [
                    is_reversed
                    for is_reversed in ((False, True) if image.shape[axis] > 1 else (False,))
                    if (image.backwards if is_reversed else image.forwards)[axis] == expected
                ]
                for axis, expected in zip(order, self.axes, strict=True)
            )
            found += [Orientation(order, directions) for directions in product(x, y, z)]
        return found

    def orientations(self, voxels: NDArray[Any], image: PlaneSums | None = None) -> list[Orientation]:
        """Find the orientations in which an image has exactly the values of the fingerprint.

        Args:
            voxels: values of the image, (I, J, K) or (I, J, K, 3).
            image: its sums, or None to compute them.

        Returns:
            None, one, or the first two of several.
        """
        found: list[Orientation] = []
        for orientation in self.possible_orientations(image or PlaneSums.of(voxels)):
            if _sha256(orientation.apply(voxels)) == self.sha256:
                found.append(orientation)
            if len(found) == 2:
                break
        return found


def _sha256(voxels: NDArray[Any]) -> str:
    digest = hashlib.sha256(f"{voxels.shape}".encode())
    for plane in voxels:
        digest.update(np.ascontiguousarray(_values(plane)).data)
    return digest.hexdigest()


def _plane_sums(voxels: NDArray[Any]) -> list[NDArray[np.uint64]]:
    """Sum the bits of the values of each plane along each axis. Sums of integers do not depend on the order."""
    sums = [np.zeros(size, np.uint64) for size in voxels.shape[:3]]
    outer = int(np.argmax(np.abs(voxels.strides[:3])))  # Its planes lie together in memory.
    first, second = (axis for axis in range(3) if axis != outer)
    for index, plane in enumerate(np.moveaxis(voxels, outer, 0)):
        bits = _values(plane).view(np.uint32)
        pixels = bits.sum(-1, dtype=np.uint64) if bits.ndim == 3 else bits
        rows = pixels.sum(1, dtype=np.uint64)
        sums[first] += rows
        sums[second] += pixels.sum(0, dtype=np.uint64)
        sums[outer][index] = rows.sum(dtype=np.uint64)
    return sums


def _values(plane: NDArray[Any]) -> NDArray[np.float32]:
    """Convert values to single precision, as viewers do; 0 and -0 are equal."""
    with np.errstate(over="ignore"):
        return np.add(plane.astype("<f4", order="K"), np.float32(0), dtype="<f4")


def _hash(sums: NDArray[np.uint64]) -> str:
    return hashlib.sha256(sums.astype("<u8").tobytes()).hexdigest()
