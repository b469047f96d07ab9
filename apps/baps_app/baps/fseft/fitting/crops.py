"""Draw cubes from a volume, half of them around the organ."""

from __future__ import annotations

import torch

from baps.fseft.fitting.draw import Draw
from baps.fseft.fitting.example import Example


class CubeSampler:
    """Draw cubes around labelled voxels, half of which belong to the organ (1:1, as published).

    Cubes near the border are shifted inwards.

    Args:
        example: the volume; if it has no voxel of the organ, or only such, all cubes are of one kind.
        side: side of the cubes, voxels; an axis that is shorter is taken whole. 0 for the whole volume.
        count: number of cubes per draw.
    """

    def __init__(self, example: Example, side: int, count: int) -> None:
        self._example, self._side, self._count = example, side, count
        self._weights = (torch.ones_like(example.target) if example.labelled is None else example.labelled).float()
        labelled = self._weights > 0
        kinds = [(labelled & kind).flatten().nonzero()[:, 0].int() for kind in (example.target, ~example.target)]
        self._centres = [candidates for candidates in kinds if len(candidates)]

    def draw(self, generator: torch.Generator) -> list[Draw]:
        """Draw cubes of both kinds alternately, or the whole volume.

        Args:
            generator: the source of randomness.

        Returns:
            The cubes.
        """
        example = self._example
        if not self._side:
            return [Draw(example.inputs, example.target, self._weights)]
        return [self._cube(self._centres[i % len(self._centres)], generator) for i in range(self._count)]

    def _cube(self, candidates: torch.Tensor, generator: torch.Generator) -> Draw:
        example, shape = self._example, self._example.target.shape[1:]
        sampled = candidates[int(torch.randint(len(candidates), (), generator=generator))]
        box = [slice(None)]
        for centre, length in zip(torch.unravel_index(sampled, shape), shape, strict=True):
            start = min(max(int(centre) - self._side // 2, 0), max(length - self._side, 0))
            box.append(slice(start, start + self._side))
        where = tuple(box)
        return Draw(example.inputs[where], example.target[where], self._weights[where])
