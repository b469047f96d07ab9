"""Cubes of a volume, half of them around the organ."""

from __future__ import annotations

import torch

from .example import Example


def draw_crop(example: Example, side: int, generator: torch.Generator) -> Example:
    """A cube around a labelled voxel, which is one of the organ half of the times (1:1, as published).

    Near the border the cube is moved inwards.

    Args:
        example: where it has no voxel of the organ, or none beside it, the other kind is taken.
        side: voxels; where the volume is shorter, all of that axis. 0 for the whole volume.
        generator: of the kind and the place.
    """
    if not side:
        return example
    inside = torch.rand((), generator=generator) < 0.5
    labelled = torch.ones_like(example.truth) if example.labelled is None else example.labelled
    wanted = labelled & (example.truth if inside else ~example.truth)
    places = (wanted if wanted.any() else labelled)[0].flatten().nonzero()[:, 0]
    chosen = places[torch.randint(len(places), (), generator=generator)]
    box = [slice(None)]
    for middle, length in zip(torch.unravel_index(chosen, labelled.shape[1:]), labelled.shape[1:], strict=True):
        start = min(max(int(middle) - side // 2, 0), max(length - side, 0))
        box.append(slice(start, start + side))
    where = tuple(box)
    known = None if example.labelled is None else example.labelled[where]
    return Example(example.inputs[where], example.truth[where], known)
