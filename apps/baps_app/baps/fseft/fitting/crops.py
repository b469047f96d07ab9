"""Cubes of a volume, half of them around the organ."""

from __future__ import annotations

import torch

from baps.fseft.fitting.draw import Draw
from baps.fseft.fitting.example import Example


class Crops:
    """Cubes around labelled voxels, half of which are of the organ (1:1, as published).

    Near the border a cube is moved inwards.

    Args:
        example: where it has no voxel of the organ, or none beside it, all cubes are of the other kind.
        side: voxels; where the volume is shorter, all of that axis. 0 for the whole volume.
        count: of the cubes that are drawn at a time.
    """

    def __init__(self, example: Example, side: int, count: int) -> None:
        self._example, self._side, self._count = example, side, count
        self._weights = (torch.ones_like(example.truth) if example.labelled is None else example.labelled).float()
        labelled = self._weights > 0
        kinds = [(labelled & kind).flatten().nonzero()[:, 0].int() for kind in (example.truth, ~example.truth)]
        self._middles = [places for places in kinds if len(places)]

    def draw(self, generator: torch.Generator) -> list[Draw]:
        """Cubes of both kinds in turn, or one of the whole volume; the generator tells their places."""
        example = self._example
        if not self._side:
            return [Draw(example.inputs, example.truth, self._weights)]
        return [self._cube(self._middles[i % len(self._middles)], generator) for i in range(self._count)]

    def _cube(self, places: torch.Tensor, generator: torch.Generator) -> Draw:
        example, shape = self._example, self._example.truth.shape[1:]
        chosen = places[int(torch.randint(len(places), (), generator=generator))]
        box = [slice(None)]
        for middle, length in zip(torch.unravel_index(chosen, shape), shape, strict=True):
            start = min(max(int(middle) - self._side // 2, 0), max(length - self._side, 0))
            box.append(slice(start, start + self._side))
        where = tuple(box)
        return Draw(example.inputs[where], example.truth[where], self._weights[where])
