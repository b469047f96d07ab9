"""Hold the segments of an image in memory: integers, in more than one layer where segments overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baps.utils.limits import check_size

_MAX_COUNTED = 1 << 16
"""Values below this are found by counting, which is faster than sorting."""

_CHUNK_VOXELS = 1 << 22
"""Voxels that are compared at once."""


@dataclass(frozen=True)
class LabelMap:
    """Segments of an image. Nearly every label map has one layer.

    Attributes:
        layers: integers in the voxel order of the image, (I, J, K) each. A value means the same segment in every layer;
            0 is background.
        names: names of the segments by value, where the file has them.
        renumbered: whether the values differ from those of the file, because it uses one value for several segments.
        notes: sentences for the user on how the file was read.
    """

    layers: tuple[NDArray[np.integer[Any]], ...]
    names: Mapping[int, str] = field(default_factory=dict)
    renumbered: bool = False
    notes: tuple[str, ...] = ()

    @classmethod
    def from_masks(
        cls, masks: Iterable[tuple[int, NDArray[np.bool_]]], names: Mapping[int, str] | None = None
    ) -> LabelMap:
        """Put masks into layers, each mask into the first layer in which it overlaps no other.

        Args:
            masks: value other than 0 and mask (I, J, K) of each segment.
            names: names of the segments by value.

        Returns:
            The label map.

        Raises:
            InputError: if the layers take more memory than the limit.
        """
        return cls((), names or {})._with(masks, names or {})

    def with_masks(self, masks: Mapping[int, NDArray[np.bool_]], names: Mapping[int, str]) -> LabelMap:
        """Add segments, in layers of their own where they overlap others.

        Args:
            masks: masks (I, J, K) by value. The values must be new to this label map.
            names: names of all segments by value.

        Returns:
            A new label map.
        """
        return self._with(masks.items(), names)

    def without(self, value: int) -> LabelMap:
        """Remove one segment.

        Args:
            value: value of the segment.

        Returns:
            A new label map.
        """
        layers = [np.where(layer == value, 0, layer) if (layer == value).any() else layer for layer in self.layers]
        names = {number: name for number, name in self.names.items() if number != value}
        return LabelMap(tuple(layers), names, self.renumbered)

    def _with(self, masks: Iterable[tuple[int, NDArray[np.bool_]]], names: Mapping[int, str]) -> LabelMap:
        layers, shared = list(self.layers), set(range(len(self.layers)))
        for value, mask in masks:
            n = _first_free_layer(layers, mask)
            if n == len(layers):
                check_size("The label", (n + 1, *mask.shape), 1)
                layers.append(np.zeros(mask.shape, np.uint8))
            fits = np.can_cast(np.min_scalar_type(value), layers[n].dtype)
            layers[n] = layers[n].astype(layers[n].dtype if fits else np.int32, copy=n in shared)
            shared.discard(n)
            layers[n][mask] = value
        return LabelMap(tuple(layers), dict(names))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of voxels along I, J, K."""
        i, j, k = self.layers[0].shape
        return i, j, k

    def mask(self, value: int) -> NDArray[np.bool_]:
        """Return the mask of one segment.

        Args:
            value: value of the segment.

        Returns:
            The mask, (I, J, K).
        """
        mask: NDArray[np.bool_] = self.layers[0] == value
        for layer in self.layers[1:]:
            mask |= layer == value
        return mask

    def foreground(self) -> NDArray[np.bool_]:
        """Return the mask of all segments together.

        Returns:
            The mask, (I, J, K).
        """
        mask: NDArray[np.bool_] = self.layers[0] != 0
        for layer in self.layers[1:]:
            mask |= layer != 0
        return mask

    def values(self) -> list[int]:
        """List the values other than 0 that occur.

        Returns:
            The values, in ascending order.
        """
        return sorted({value for layer in self.layers for value in unique_values(layer)} - {0})

    def slices_by_value(self) -> dict[int, list[int]]:
        """List the slices along K on which each segment occurs, in one pass.

        Returns:
            Slice indices in ascending order, by value.
        """
        slices: dict[int, set[int]] = {}
        for layer in self.layers:
            for k in range(layer.shape[2]):
                for value in unique_values(layer[:, :, k : k + 1]) - {0}:
                    slices.setdefault(value, set()).add(k)
        return {value: sorted(slices[value]) for value in sorted(slices)}

    def filled_from(self, other: LabelMap, numbers: Mapping[int, int], names: Mapping[int, str]) -> LabelMap:
        """Add the segments of another label map where this one is background, in one pass.

        Args:
            other: label map of the same shape. Its layers stay separate layers.
            numbers: new value of each segment by its value in ``other``.
            names: names of all segments by new value.

        Returns:
            A new label map.
        """
        free, largest = ~self.foreground(), max(numbers.values(), default=0)
        layers = list(self.layers)
        for n, layer in enumerate(other.layers):
            added = _renumbered(layer, numbers)
            added[~free] = 0
            if not added.any():
                continue
            if n >= len(layers):
                check_size("The label", (len(layers) + 1, *self.shape), 1)
                layers.append(added)
                continue
            fits = np.can_cast(np.min_scalar_type(largest), layers[n].dtype)
            layers[n] = np.where(added != 0, added, layers[n].astype(layers[n].dtype if fits else np.int32))
        return LabelMap(tuple(layers), dict(names))


def _first_free_layer(layers: Sequence[NDArray[np.integer[Any]]], mask: NDArray[np.bool_]) -> int:
    """Return the index of the first layer that overlaps no voxel of a mask, or the number of layers.

    A layer is dropped at its first overlap. Otherwise hundreds of overlapping layers would be compared in full.
    """
    free, step = list(range(len(layers))), max(1, _CHUNK_VOXELS // max(1, mask.shape[0] * mask.shape[1]))
    for k in range(0, mask.shape[2] if free else 0, step):
        i, j, at = np.nonzero(mask[:, :, k : k + step])
        if i.size:
            free = [n for n in free if not layers[n][i, j, k + at].any()]
    return free[0] if free else len(layers)


def _renumbered(voxels: NDArray[np.integer[Any]], numbers: Mapping[int, int]) -> NDArray[np.integer[Any]]:
    """Replace the values of a layer (I, J, K); values without a replacement become 0."""
    dtype = np.uint8 if max(numbers.values(), default=0) <= 255 else np.int32
    result: NDArray[np.integer[Any]] = np.zeros(voxels.shape, dtype)
    present = np.array([0, *sorted(value for value in unique_values(voxels) if value > 0)])
    new, ranks = np.array([numbers.get(int(value), 0) for value in present], dtype), _rank_lookup(present, voxels)
    for k in range(voxels.shape[2]):
        result[:, :, k] = new[ranks(k)].reshape(voxels.shape[:2], order="F")
    return result


@dataclass(frozen=True)
class Overlaps:
    """Voxel counts of pairs of segments of two label maps, by slice.

    Attributes:
        old: voxels of the old segment, (K, pairs).
        new: voxels of the new segment, (K, pairs).
        both: voxels that belong to both, (K, pairs).
    """

    old: NDArray[np.int64]
    new: NDArray[np.int64]
    both: NDArray[np.int64]

    @classmethod
    def count(cls, old: LabelMap, new: LabelMap, pairs: Sequence[tuple[int, int]]) -> Overlaps:
        """Count the voxels in one pass over each pair of layers.

        Args:
            old: old label map, in which no value lies in two layers.
            new: new label map of the same shape, likewise.
            pairs: value in the old label map and value in the new one; 0 for a segment that one of them does not have.

        Returns:
            The counts.
        """
        depth = old.shape[2]
        old_values, new_values = (np.array([0, *(v for v in one.values() if v > 0)]) for one in (old, new))
        counts = np.zeros((3, depth, len(pairs)), np.int64)
        if not pairs:
            return cls(*counts)
        rows = _ranks(old_values, [one for one, _ in pairs])
        columns = _ranks(new_values, [other for _, other in pairs])
        size = len(old_values), len(new_values)
        old_planes = [_rank_lookup(old_values, layer) for layer in old.layers]
        new_planes = [_rank_lookup(new_values, layer) for layer in new.layers]
        for k in range(depth):
            olds, news = [plane(k) for plane in old_planes], [plane(k) for plane in new_planes]
            both = np.zeros(size[0] * size[1], np.int64)
            for one in olds:
                for other in news:
                    both += np.bincount(one * size[1] + other, minlength=both.size)
            together = both.reshape(size)
            if len(olds) == len(news) == 1:
                before, after = together.sum(1), together.sum(0)
            else:
                before = np.sum([np.bincount(plane, minlength=size[0]) for plane in olds], axis=0)
                after = np.sum([np.bincount(plane, minlength=size[1]) for plane in news], axis=0)
            counts[0, k] = np.where(rows > 0, before[rows], 0)
            counts[1, k] = np.where(columns > 0, after[columns], 0)
            counts[2, k] = np.where((rows > 0) & (columns > 0), together[rows, columns], 0)
        return cls(*counts)


def _rank_lookup(values: NDArray[np.int64], layer: NDArray[np.integer[Any]]) -> Callable[[int], NDArray[np.int64]]:
    """Return a function that gives the rank of each voxel of one slice among sorted values; 0 for values up to 0."""
    largest = int(layer.max(initial=0))
    if int(layer.min(initial=0)) < 0 or largest >= _MAX_COUNTED:
        return lambda k: np.searchsorted(values, layer[:, :, k].ravel("F"))
    ranks = np.zeros(largest + 1, np.int64)
    known = values[values <= largest]
    ranks[known] = np.arange(len(known))
    return lambda k: ranks[layer[:, :, k].ravel("F")]


def _ranks(values: NDArray[np.int64], queries: Sequence[int]) -> NDArray[np.int64]:
    """Return the ranks of values among sorted ones; 0 for those that are missing."""
    ranks = np.minimum(np.searchsorted(values, queries), len(values) - 1)
    return np.where(values[ranks] == np.array(queries), ranks, 0)


def unique_values(voxels: NDArray[np.integer[Any]]) -> set[int]:
    """Return the different values of a layer.

    Args:
        voxels: integers, (I, J, K).

    Returns:
        The values, 0 included where it occurs.
    """
    values: set[int] = set()
    for k in range(voxels.shape[2]):  # Slice by slice, because counting needs eight bytes per voxel.
        plane = voxels[:, :, k]
        if plane.min() < 0 or plane.max() >= _MAX_COUNTED:
            values.update(np.unique(plane).tolist())
        else:
            values.update(np.flatnonzero(np.bincount(plane.ravel("K"))).tolist())
    return values
