"""Draw single voxels from a volume: from the organ, its surroundings and the rest.

Not from the FSEFT paper.

For adapters that classify each voxel independently, a step on a few thousand voxels of all parts of a body is more
informative than one on a cube, in a tenth of the time. Each voxel represents as many as its part has, so that sums over
the drawn voxels equal, on average, those over the volume.
"""

from __future__ import annotations

import math

import torch

from baps.fseft.fitting.draw import Draw
from baps.fseft.fitting.example import Example

_MARGIN = 12
"""Margin of the surroundings on each side of the organ's bounding box, voxels."""

_MAX_VOXELS = 50_000
"""Maximum number of voxels per part that are kept."""

_SHARES = (1, 3, 3)
"""Shares of the organ, its surroundings and the rest."""


class PointSampler:
    """Voxels of a labelled volume, limited per part so that any number of volumes fits into memory.

    Args:
        example: the volume; voxels that were not annotated are never drawn.
        count: approximate number of voxels per draw.
    """

    def __init__(self, example: Example, count: int) -> None:
        labelled = torch.ones_like(example.target) if example.labelled is None else example.labelled
        organ = labelled & example.target
        surroundings = labelled & _surrounding_box(organ) & ~organ
        inputs = example.inputs.flatten(1)
        self._parts = []
        for mask, share in zip((organ, surroundings, labelled & ~organ & ~surroundings), _SHARES, strict=True):
            indices = mask.flatten().nonzero()[:, 0]
            if len(indices):
                used = indices[:: math.ceil(len(indices) / _MAX_VOXELS)]
                share_count = count * share // sum(_SHARES)
                self._parts.append(
                    (inputs[:, used].T.contiguous(), mask is organ, share_count, len(indices) / share_count)
                )

    def draw(self, generator: torch.Generator) -> list[Draw]:
        """Draw voxels of all parts.

        Args:
            generator: the source of randomness.

        Returns:
            A single draw of N voxels, (C, N, 1, 1).
        """
        inputs, target, weights = [], [], []
        for voxels, is_organ, count, weight in self._parts:
            inputs.append(voxels[torch.randint(len(voxels), (count,), generator=generator)])
            target.append(torch.full((1, count), is_organ))
            weights.append(torch.full((1, count), weight))
        columns = (torch.cat(inputs).T, torch.cat(target, 1), torch.cat(weights, 1))
        return [Draw(*(column[..., None, None] for column in columns))]


def _surrounding_box(organ: torch.Tensor) -> torch.Tensor:
    """Return the bounding box of a mask (1, H, W, D) with a margin; empty for an empty mask."""
    box = torch.zeros_like(organ)
    indices = organ[0].nonzero()
    if len(indices):
        first, last = (indices.amin(0) - _MARGIN).clamp(min=0), indices.amax(0) + _MARGIN + 1
        box[0, first[0] : last[0], first[1] : last[1], first[2] : last[2]] = True
    return box
