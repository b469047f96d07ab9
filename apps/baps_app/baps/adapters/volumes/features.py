"""Compute the input of the volume head: the 3D black box's answer, the image, and their relation to the prompts."""

from __future__ import annotations

import torch
from scipy import ndimage
from torch.nn import functional as F

from baps.adapters.output_head import to_logits

GRID = 32
"""Number of cells along each side of the cube on which the head works."""

VOLUME_FEATURES = 23
"""Number of features per cell."""

_FAR = 32.0


@torch.no_grad()
def volume_head_features(
    cubes: torch.Tensor,
    probability: torch.Tensor,
    positive: torch.Tensor,
    negative: torch.Tensor,
    region: torch.Tensor,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the features of each cell. None of them has a direction.

    Args:
        cubes: grey values in [0, 1] before the tone curve changed them, (B, S, S, S); S is a multiple of ``GRID``.
        probability: what the black box answered, (B, S, S, S).
        positive: 1 where clicks and scribbles mark the object, (B, S, S, S).
        negative: likewise, as not the object.
        region: 1 inside boxes and lassos.
        start: the masks to be corrected, (B, S, S, S) bool, or None.

    Returns:
        Features, (B, VOLUME_FEATURES, GRID, GRID, GRID), of about unit scale. The first one is a third of the log odds.
    """
    x, p, inside_box = (F.adaptive_avg_pool3d(one[:, None], GRID) for one in (cubes, probability, region))
    marks, other_marks = (F.adaptive_max_pool3d(one[:, None], GRID) for one in (positive, negative))
    clicked_marks = torch.where(_any(marks), marks, _middle(inside_box))
    near, far = _distance(clicked_marks), _distance(other_marks)
    odds = to_logits(p) / 3
    small, large = local_mean(x, 3), local_mean(x, 7)
    clicked = _mean_where(x, torch.exp(-near.square() / 4.5))
    predicted = (p > 0.5) * p + 1e-4
    inside = _mean_where(x, predicted)
    spread = _mean_where((x - inside).square(), predicted).sqrt().clamp(min=0.02)
    off_click, off_inside = 6 * (small - clicked), (small - inside) / spread
    unlike_click, unlike_inside = off_click.abs(), off_inside.abs().clamp(max=5) / 2
    texture = 10 * (local_mean(x.square(), 5) - local_mean(x, 5).square()).clamp(min=0).sqrt()
    corrected = torch.zeros_like(x) if start is None else 2 * F.adaptive_avg_pool3d(start[:, None].float(), GRID) - 1
    area = 3 * predicted.mean((2, 3, 4), keepdim=True).sqrt()
    features = (
        odds, local_mean(odds, 3), local_mean(odds, 7), local_mean(p, 13),
        3 * (x - 0.4), 3 * (small - 0.4), 3 * (large - 0.4),
        off_click, unlike_click, local_mean(unlike_click, 3), local_mean(unlike_click, 7),
        off_inside.clamp(-4, 4) / 2, unlike_inside, local_mean(unlike_inside, 5), texture,
        torch.exp(-near / 2), torch.exp(-near / 6), near / 16,
        torch.exp(-far / 2), torch.exp(-far / 6),
        torch.where(_any(inside_box), 2 * inside_box - 1, inside_box), area.expand_as(x), corrected,
    )  # fmt: skip
    return torch.cat(features, 1)


def local_mean(x: torch.Tensor, width: int) -> torch.Tensor:
    """Average over a cube around each cell, or the part of it that exists.

    Args:
        x: (B, C, G, G, G).
        width: odd width of the cube, cells.

    Returns:
        Means, of the same shape.
    """
    for kernel in ((width, 1, 1), (1, width, 1), (1, 1, width)):
        padding = tuple(one // 2 for one in kernel)
        x = F.avg_pool3d(x, kernel, 1, padding, count_include_pad=False)
    return x


def _distance(marks: torch.Tensor) -> torch.Tensor:
    """Return the distance to the nearest mark in cells, up to ``_FAR``, (B, 1, GRID, GRID, GRID)."""
    far = torch.full_like(marks, _FAR)
    for row, one in enumerate(marks[:, 0].numpy()):
        if one.any():
            far[row, 0] = torch.from_numpy(ndimage.distance_transform_edt(one == 0)).float().clamp(max=_FAR)
    return far


def _middle(region: torch.Tensor) -> torch.Tensor:
    """Mark the middle cell of each region, (B, 1, GRID, GRID, GRID); nothing where there is none."""
    marks = torch.zeros_like(region)
    for row, one in enumerate(region[:, 0]):
        if one.any():
            x, y, z = (one > 0).nonzero().float().mean(0).round().long().tolist()
            marks[row, 0, x, y, z] = 1
    return marks


def _any(weight: torch.Tensor) -> torch.Tensor:
    return weight.amax((2, 3, 4), keepdim=True) > 0


def _mean_where(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the weighted mean over each cube, (B, 1, 1, 1, 1)."""
    return (values * weight).sum((2, 3, 4), keepdim=True) / weight.sum((2, 3, 4), keepdim=True).clamp(min=1e-6)
