"""Segments of an image in memory: integers, in more than one layer where segments overlap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .size import check_size

_MOST_COUNTED = 1 << 16
"""Values up to this are found by counting, which is faster than sorting."""


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
            place = next((n for n, layer in enumerate(layers) if not layer[mask].any()), len(layers))
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
