"""Single voxels of a volume: of the organ, of its surroundings and of the rest. Ours.

For adapters that look at each voxel alone, a step on a few thousand of all parts of a body tells more than one on a
cube, in a tenth of the time. Each stands for as many as there are of its part, so that sums over them are, in the
mean, those over the volume.
"""

from __future__ import annotations

import math

import torch

from baps.fseft.fitting.draw import Draw
from baps.fseft.fitting.example import Example

_MARGIN = 12
"""Of the surroundings, voxels on each side of the box that holds the organ."""

_MOST = 50_000
"""Voxels of a part that are kept."""

_SHARES = (1, 3, 3)
"""Of the organ, its surroundings and the rest."""


class Points:
    """Voxels of a labelled volume, at most so many of each part that memory holds them for any number of volumes.

    Args:
        example: the volume; what nobody has labelled is never drawn.
        count: of the voxels that are drawn at a time, about.
    """

    def __init__(self, example: Example, count: int) -> None:
        labelled = torch.ones_like(example.truth) if example.labelled is None else example.labelled
        organ = labelled & example.truth
        near = labelled & _around(organ) & ~organ
        inputs = example.inputs.flatten(1)
        self._parts = []
        for mask, share in zip((organ, near, labelled & ~organ & ~near), _SHARES, strict=True):
            places = mask.flatten().nonzero()[:, 0]
            if len(places):
                kept = places[:: math.ceil(len(places) / _MOST)]
                drawn = count * share // sum(_SHARES)
                self._parts.append((inputs[:, kept].T.contiguous(), mask is organ, drawn, len(places) / drawn))

    def draw(self, generator: torch.Generator) -> list[Draw]:
        """Some of them, as one draw; the generator tells which."""
        inputs, truth, weights = [], [], []
        for voxels, is_organ, count, weight in self._parts:
            inputs.append(voxels[torch.randint(len(voxels), (count,), generator=generator)])
            truth.append(torch.full((1, count), is_organ))
            weights.append(torch.full((1, count), weight))
        columns = (torch.cat(inputs).T, torch.cat(truth, 1), torch.cat(weights, 1))
        return [Draw(*(column[..., None, None] for column in columns))]


def _around(organ: torch.Tensor) -> torch.Tensor:
    """The box of a mask (1, H, W, D) and a margin; nothing of an empty one."""
    box = torch.zeros_like(organ)
    places = organ[0].nonzero()
    if len(places):
        first, last = (places.amin(0) - _MARGIN).clamp(min=0), places.amax(0) + _MARGIN + 1
        box[0, first[0] : last[0], first[1] : last[1], first[2] : last[2]] = True
    return box
