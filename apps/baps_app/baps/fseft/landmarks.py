"""Where a voxel lies, told by the organs that a foundation model finds. Ours.

The features of a frozen model say what a voxel looks like, and an organ that it was not trained on looks much like its
neighbours. But a pancreas lies between the liver, the spleen and the aorta in everybody: the way from the middle of
each organ that is found to a voxel says more from one labelled volume than any number of features.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from baps.fseft.models import FoundationModel

_LEAST = 50
"""Voxels; of an organ of which fewer are found, nothing is said."""

_DECIMETRE = 100.0
_AROUND = 5
"""Side of the cube of which the mean is taken, voxels."""


@torch.no_grad()
def add_landmarks(model: FoundationModel, image: torch.Tensor, features: torch.Tensor, spacing: float) -> torch.Tensor:
    """What a voxel looks like, what its surroundings look like, and where it lies.

    Args:
        model: whose head finds the organs; without one, nothing is said of places.
        image: (1, H, W, D) in [0, 1].
        features: (C, H, W, D), of the model.
        spacing: of the voxels, mm.

    Returns:
        (2 (C + 1) + 3 K, H, W, D) in half precision: grey value and features; their means over 5x5x5 voxels; and of
        each of K organs the way from its middle, dm, along the axes; 0 where it was not found.
    """
    looks = torch.cat([image, features.float()])
    around = functional.avg_pool3d(looks[None], _AROUND, 1, _AROUND // 2, count_include_pad=False)[0]
    places = torch.stack(torch.meshgrid(*(torch.arange(float(side)) for side in image.shape[1:]), indexing="ij"))
    seen, classes = 2 * len(looks), 0 if model.head is None else model.head.out_channels
    made = torch.empty((seen + 3 * classes, *image.shape[1:]), dtype=torch.half)  # The one large thing in memory.
    made[: len(looks)], made[len(looks) : seen] = looks, around
    if model.head is not None:
        assert model.head.bias is not None
        ways = made[seen:].unflatten(0, (classes, 3))
        for way, weights, bias in zip(ways, model.head.weight.flatten(1).cpu(), model.head.bias.cpu(), strict=True):
            organ = torch.tensordot(weights, looks[1:], 1) + bias > 0
            way.copy_(_from_middle(organ, places) * spacing / _DECIMETRE)
    return made


def _from_middle(organ: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    if organ.sum() < _LEAST:
        return torch.zeros_like(places)
    return places - places[:, organ].mean(1)[:, None, None, None]
