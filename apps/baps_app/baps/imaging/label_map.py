"""Segments of an image in memory: integers, in more than one layer where segments overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baps.utils.limits import check_size

_MOST_COUNTED = 1 << 16
"""Values up to this are found by counting, which is faster than sorting."""

_LOOKED_AT = 1 << 22
"""Voxels in one go."""


@dataclass(frozen=True)
class LabelMap:
    """Segments of an image. Nearly every label map has one layer.

    Attributes:
        layers: (I, J, K) integers each, in the voxel order of the image. A value means the same segment in every layer;
            0 means nothing.
        names: of the segments by value, where the file says them.
        renumbered: whether the values are not those of the file, because it uses one value for several segments.
    """

    layers: tuple[NDArray[np.integer[Any]], ...]
    names: Mapping[int, str] = field(default_factory=dict)
    renumbered: bool = False

    @classmethod
    def of_masks(
        cls, masks: Iterable[tuple[int, NDArray[np.bool_]]], names: Mapping[int, str] | None = None
    ) -> LabelMap:
        """Put masks into layers, each into the first in which it overlaps with no other.

        Args:
            masks: values other than 0, and where they are, (I, J, K).
            names: by value.

        Raises:
            InputError: if the layers take more memory than is allowed.
        """
        return cls((), names or {})._with(masks, names or {})

    def with_masks(self, masks: Mapping[int, NDArray[np.bool_]], names: Mapping[int, str]) -> LabelMap:
        """Return the label map with segments added, in layers of their own where they overlap.

        Args:
            masks: by values that it does not hold yet, (I, J, K).
            names: of all segments, by value.
        """
        return self._with(masks.items(), names)

    def without(self, value: int) -> LabelMap:
        """Return the label map without one segment."""
        layers = [np.where(layer == value, 0, layer) if (layer == value).any() else layer for layer in self.layers]
        names = {number: name for number, name in self.names.items() if number != value}
        return LabelMap(tuple(layers), names, self.renumbered)

    def _with(self, masks: Iterable[tuple[int, NDArray[np.bool_]]], names: Mapping[int, str]) -> LabelMap:
        layers, shared = list(self.layers), set(range(len(self.layers)))
        for value, mask in masks:
            place = _first_free(layers, mask)
            if place == len(layers):
                check_size("The label", (place + 1, *mask.shape), 1)
                layers.append(np.zeros(mask.shape, np.uint8))
            fits = np.can_cast(np.min_scalar_type(value), layers[place].dtype)
            layers[place] = layers[place].astype(layers[place].dtype if fits else np.int32, copy=place in shared)
            shared.discard(place)
            layers[place][mask] = value
        return LabelMap(tuple(layers), dict(names))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along I, J, K."""
        i, j, k = self.layers[0].shape
        return i, j, k

    def mask(self, value: int) -> NDArray[np.bool_]:
        """Return where one segment is, (I, J, K)."""
        mask: NDArray[np.bool_] = self.layers[0] == value
        for layer in self.layers[1:]:
            mask |= layer == value
        return mask

    def marked(self) -> NDArray[np.bool_]:
        """Return where any segment is, (I, J, K)."""
        mask: NDArray[np.bool_] = self.layers[0] != 0
        for layer in self.layers[1:]:
            mask |= layer != 0
        return mask

    def values(self) -> list[int]:
        """Return the values other than 0 that occur, in ascending order."""
        return sorted({value for layer in self.layers for value in values_of(layer)} - {0})

    def slices(self) -> dict[int, list[int]]:
        """Return the slices across K on which each value other than 0 occurs, found in one pass."""
        found: dict[int, set[int]] = {}
        for layer in self.layers:
            for k in range(layer.shape[2]):
                for value in values_of(layer[:, :, k : k + 1]) - {0}:
                    found.setdefault(value, set()).add(k)
        return {value: sorted(found[value]) for value in sorted(found)}

    def filled(self, other: LabelMap, numbers: Mapping[int, int], names: Mapping[int, str]) -> LabelMap:
        """Return the label map with segments of another one where it marks nothing, in one pass.

        Args:
            other: of the same shape. Its layers stay layers.
            numbers: by value of ``other`` the value that a segment gets.
            names: of all segments, by value.
        """
        free, largest = ~self.marked(), max(numbers.values(), default=0)
        layers = list(self.layers)
        for n, theirs in enumerate(other.layers):
            taken = _renumbered(theirs, numbers)
            taken[~free] = 0
            if not taken.any():
                continue
            if n >= len(layers):
                check_size("The label", (len(layers) + 1, *self.shape), 1)
                layers.append(taken)
                continue
            fits = np.can_cast(np.min_scalar_type(largest), layers[n].dtype)
            layers[n] = np.where(taken != 0, taken, layers[n].astype(layers[n].dtype if fits else np.int32))
        return LabelMap(tuple(layers), dict(names))


def _first_free(layers: Sequence[NDArray[np.integer[Any]]], mask: NDArray[np.bool_]) -> int:
    """The place of the first layer that marks nothing of a mask, or the number of layers.

    Layers are left as soon as they mark some of it: else hundreds that overlap are compared whole, each with all.
    """
    free, step = list(range(len(layers))), max(1, _LOOKED_AT // max(1, mask.shape[0] * mask.shape[1]))
    for k in range(0, mask.shape[2] if free else 0, step):
        i, j, at = np.nonzero(mask[:, :, k : k + step])
        if i.size:
            free = [n for n in free if not layers[n][i, j, k + at].any()]
    return free[0] if free else len(layers)


def _renumbered(voxels: NDArray[np.integer[Any]], numbers: Mapping[int, int]) -> NDArray[np.integer[Any]]:
    """(I, J, K) integers with other values; those without one become 0."""
    kind = np.uint8 if max(numbers.values(), default=0) <= 255 else np.int32
    found: NDArray[np.integer[Any]] = np.zeros(voxels.shape, kind)
    present = np.array([0, *sorted(value for value in values_of(voxels) if value > 0)])
    new, places = np.array([numbers.get(int(value), 0) for value in present], kind), _index_by(present, voxels)
    for k in range(voxels.shape[2]):
        found[:, :, k] = new[places(k)].reshape(voxels.shape[:2], order="F")
    return found


@dataclass(frozen=True)
class Overlaps:
    """How pairs of segments of two label maps lie to each other, slice by slice.

    Attributes:
        old, new, both: voxels of the old segment, of the new one, and of both; (K, pairs).
    """

    old: NDArray[np.int64]
    new: NDArray[np.int64]
    both: NDArray[np.int64]

    @classmethod
    def of(cls, old: LabelMap, new: LabelMap, pairs: Sequence[tuple[int, int]]) -> Overlaps:
        """Count them in one pass over each pair of layers.

        Args:
            old, new: of the same shape; a value lies in one layer of each.
            pairs: a value of the old one and one of the new one; 0 for a segment that one of them has not.
        """
        depth = old.shape[2]
        old_values, new_values = (np.array([0, *(v for v in one.values() if v > 0)]) for one in (old, new))
        counts = np.zeros((3, depth, len(pairs)), np.int64)
        if not pairs:
            return cls(*counts)
        rows = _places(old_values, [one for one, _ in pairs])
        columns = _places(new_values, [other for _, other in pairs])
        size = len(old_values), len(new_values)
        old_planes = [_index_by(old_values, layer) for layer in old.layers]
        new_planes = [_index_by(new_values, layer) for layer in new.layers]
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


def _index_by(values: NDArray[np.int64], layer: NDArray[np.integer[Any]]) -> Callable[[int], NDArray[np.int64]]:
    """Return what gives, of a slice across K, each voxel's place among sorted values; 0 for those up to 0."""
    largest = int(layer.max(initial=0))
    if int(layer.min(initial=0)) < 0 or largest >= _MOST_COUNTED:
        return lambda k: np.searchsorted(values, layer[:, :, k].ravel("F"))
    places = np.zeros(largest + 1, np.int64)
    known = values[values <= largest]
    places[known] = np.arange(len(known))
    return lambda k: places[layer[:, :, k].ravel("F")]


def _places(values: NDArray[np.int64], wanted: Sequence[int]) -> NDArray[np.int64]:
    """The places of values among others; 0 for those that are not there."""
    found = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    return np.where(values[found] == np.array(wanted), found, 0)


def values_of(voxels: NDArray[np.integer[Any]]) -> set[int]:
    """Return the different values of (I, J, K) integers."""
    found: set[int] = set()
    for k in range(voxels.shape[2]):  # Slice by slice: counting takes room for eight bytes a voxel.
        plane = voxels[:, :, k]
        if plane.min() < 0 or plane.max() >= _MOST_COUNTED:
            found.update(np.unique(plane).tolist())
        else:
            found.update(np.flatnonzero(np.bincount(plane.ravel("K"))).tolist())
    return found
