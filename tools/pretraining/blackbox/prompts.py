"""Draw targets and prompts for training pictures: which object, and where it is clicked or boxed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

from tools.pretraining.blackbox.scenes import Scenes

MIN_AREA = 1 / 1200
"""Smallest area of a target, as a share of the picture."""


@dataclass(frozen=True)
class Targets:
    """Targets and prompts of a batch.

    Attributes:
        image: index of the picture of each target, (N,).
        masks: masks, (N, S, S) float, 0 or 1.
        points: clicks (X, Y) in pixels, (N, K, 2).
        signs: 1 for a positive click, 0 for a negative one, -1 for none, (N, K).
        boxes: boxes X0, Y0, X1, Y1 in pixels, (N, 4).
    """

    image: torch.Tensor
    masks: torch.Tensor
    points: torch.Tensor
    signs: torch.Tensor
    boxes: torch.Tensor


def draw_targets(generator: torch.Generator, scenes: Scenes, per_picture: int) -> Targets:
    """Draw objects in each picture, and prompts for them.

    Half of the batches have one click per target; the rest have up to three more, some on the background beside the
    object.

    Args:
        generator: random generator.
        scenes: the pictures.
        per_picture: maximum number of objects per picture.

    Returns:
        The targets.
    """
    images, masks = [], []
    size = scenes.regions.shape[-1]
    for index, region in enumerate(scenes.regions):
        for mask in _objects(generator, region, per_picture):
            images.append(index)
            masks.append(mask)
    stacked = torch.stack(masks).float()
    count = len(masks)
    clicks = 1 if torch.rand(1, generator=generator) < 0.5 else int(torch.randint(2, 5, (1,), generator=generator))
    deep = _box_blur(stacked, size // 8)
    near = _box_blur(stacked, size // 4)
    positive = stacked * torch.where(torch.rand((count, 1, 1), generator=generator) < 0.6, deep**4, torch.ones(1))
    negative = (1 - stacked) * (near + 0.02)
    signs = torch.ones((count, clicks))
    signs[:, 1:] = (torch.rand((count, clicks - 1), generator=generator) < 0.5).float()
    absent = torch.rand((count, clicks - 1), generator=generator) < 0.3
    signs[:, 1:][absent] = -1
    points = torch.stack(
        [_sample(generator, torch.where((signs[:, k] == 0).view(-1, 1, 1), negative, positive)) for k in range(clicks)],
        1,
    )
    return Targets(torch.tensor(images), stacked, points, signs, _boxes(generator, stacked))


def _objects(generator: torch.Generator, region: torch.Tensor, per_picture: int) -> list[torch.Tensor]:
    """Draw masks (S, S) of different objects, each one connected piece."""
    size = region.shape[-1]
    areas = torch.bincount(region.flatten())
    areas[0] = 0
    candidates = (areas >= size * size * MIN_AREA).nonzero().flatten()
    order = candidates[torch.randperm(len(candidates), generator=generator)][:per_picture]
    masks = []
    for number in order:
        pieces, _ = ndimage.label((region == number).numpy())
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        if sizes.max() >= size * size * MIN_AREA:
            masks.append(torch.from_numpy(pieces == sizes.argmax()))
    if not masks:  # Without an object, the target is the background.
        masks.append(region == 0)
    return masks


def _box_blur(masks: torch.Tensor, width: int) -> torch.Tensor:
    width += 1 - width % 2
    pooled = F.avg_pool2d(masks.unsqueeze(1), (1, width), 1, (0, width // 2))
    return F.avg_pool2d(pooled, (width, 1), 1, (width // 2, 0))[:, 0]


def _sample(generator: torch.Generator, weights: torch.Tensor) -> torch.Tensor:
    """Draw one pixel (X, Y) per map, in proportion to the weights (N, S, S)."""
    size = weights.shape[-1]
    flat = torch.multinomial(weights.flatten(1) + 1e-12, 1, generator=generator)[:, 0]
    return torch.stack([flat % size, flat // size], 1).float()


def _boxes(generator: torch.Generator, masks: torch.Tensor) -> torch.Tensor:
    size = masks.shape[-1]
    columns, rows = masks.amax(1), masks.amax(2)
    axis = torch.arange(size).float()
    low = [torch.where(hit > 0, axis, torch.tensor(float(size))).amin(1) for hit in (columns, rows)]
    high = [torch.where(hit > 0, axis, torch.tensor(-1.0)).amax(1) + 1 for hit in (columns, rows)]
    box = torch.stack([*low, *high], 1)
    side = (box[:, 2:] - box[:, :2]).repeat(1, 2)
    jitter = torch.randn(box.shape, generator=generator).clamp(-2, 2) * 0.05
    return (box + jitter * side).clamp(0, size)
