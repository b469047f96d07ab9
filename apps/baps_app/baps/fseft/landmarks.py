"""Describe where a voxel lies, relative to the organs that a foundation model finds.

Not from the FSEFT paper.

The features of a frozen model describe what a voxel looks like, and an organ that the model was not trained on looks
much like its neighbours. But the pancreas lies between the liver, the spleen and the aorta in everybody: the offset of
a voxel from the centre of each organ that is found is more informative, from one labelled volume, than any number of
features.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from baps.fseft.models import FoundationModel
from baps.fseft.preprocessing import VoxelSize

_MIN_VOXELS = 50
"""Smallest size, in voxels, of an organ that counts as found."""

_DECIMETRE = 100.0
_NEIGHBOURHOOD = 5
"""Side of the cube over which neighbourhood means are taken, voxels."""


@torch.no_grad()
def add_landmarks(
    model: FoundationModel, image: torch.Tensor, features: torch.Tensor, spacing: VoxelSize
) -> torch.Tensor:
    """Describe each voxel: what it looks like, what its neighbourhood looks like, and where it lies.

    Args:
        model: the foundation model, whose head finds the organs; without a head there are no positions.
        image: (1, H, W, D) in [0, 1].
        features: features of the model, (C, H, W, D).
        spacing: size of a voxel.

    Returns:
        (2 (C + 1) + 3 K, H, W, D) in half precision: grey value and features; their means over 5x5x5 voxels; and, for
            each of K organs, the offset from its centre along the axes, dm, or 0 if it was not found.
    """
    appearance = torch.cat([image, features.float()])
    voxel = torch.tensor(spacing).view(-1, 1, 1, 1)
    neighbourhood = functional.avg_pool3d(
        appearance[None], _NEIGHBOURHOOD, 1, _NEIGHBOURHOOD // 2, count_include_pad=False
    )[0]
    coordinates = torch.stack(torch.meshgrid(*(torch.arange(float(side)) for side in image.shape[1:]), indexing="ij"))
    appearance_channels, classes = 2 * len(appearance), 0 if model.head is None else model.head.out_channels
    inputs = torch.empty(
        (appearance_channels + 3 * classes, *image.shape[1:]), dtype=torch.half
    )  # The only large array in memory.
    inputs[: len(appearance)], inputs[len(appearance) : appearance_channels] = appearance, neighbourhood
    if model.head is not None:
        assert model.head.bias is not None
        offsets = inputs[appearance_channels:].unflatten(0, (classes, 3))
        for offset, weights, bias in zip(
            offsets, model.head.weight.flatten(1).cpu(), model.head.bias.cpu(), strict=True
        ):
            organ = torch.tensordot(weights, appearance[1:], 1) + bias > 0
            offset.copy_(_offset_from_centre(organ, coordinates) * voxel / _DECIMETRE)
    return inputs


def _offset_from_centre(organ: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    if organ.sum() < _MIN_VOXELS:
        return torch.zeros_like(coordinates)
    return coordinates - coordinates[:, organ].mean(1)[:, None, None, None]
