"""Compute the input of the output head: the black box's prediction, the image, and their relation to the clicks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from baps.adapters.visual_prompt.local_mean import local_mean
from baps.prompts import Point, Prompt

GRID = 64
"""Number of cells along each side of the grid on which the head sees an image."""

FEATURES = 30
"""Number of features per cell."""

_CLICK_SIGMA = 1.5
_DISTANCE_SCALE = 27.0


def to_logits(probability: torch.Tensor) -> torch.Tensor:
    """Convert probabilities to log odds, bounded to about +-6.

    Args:
        probability: probabilities, of any shape.

    Returns:
        Log odds, of the same shape.
    """
    return torch.logit(probability.clamp(0.002, 0.998))


def head_features(images: torch.Tensor, probability: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
    """Compute the features of each cell, without a graph.

    Args:
        images: images before the visual prompt changed them, (B, 3, S, S) float in [0, 255].
        probability: what the black box predicted, (B, S, S).
        prompts: one per image, in pixels of the image.

    Returns:
        Features, (B, FEATURES, GRID, GRID), of about unit scale. The first one is a third of the log odds.
    """
    scale = GRID / images.shape[-1]
    x = F.adaptive_avg_pool2d(images / 255.0, GRID)
    p = F.adaptive_avg_pool2d(probability[:, None], GRID)
    grey, odds = x.mean(1, keepdim=True), to_logits(p) / 3
    positive = torch.stack([_distance(_clicks(prompt), scale) for prompt in prompts])[:, None]
    negative = torch.stack([_distance(prompt.negative, scale) for prompt in prompts])[:, None]
    boxes = torch.stack([_inside(prompt, scale) for prompt in prompts])[:, None]
    small, large = local_mean(x, 3), local_mean(x, 9)
    clicked = _mean_where(x, torch.exp(-positive.square() / (2 * _CLICK_SIGMA**2)))
    predicted = (p > 0.5) * p + 1e-4
    inside = _mean_where(x, predicted)
    spread = _mean_where((x - inside).square(), predicted).sqrt().clamp(min=0.02)
    off_click = 6 * (small - clicked)
    unlike_click = off_click.abs().mean(1, keepdim=True)
    off_inside = (small - inside) / spread
    unlike_inside = off_inside.abs().mean(1, keepdim=True).clamp(max=5) / 2
    texture = 10 * (local_mean(grey.square(), 7) - local_mean(grey, 7).square()).clamp(min=0).sqrt()
    area = 3 * predicted.mean((2, 3), keepdim=True).sqrt()
    features = (
        odds, local_mean(odds, 3), local_mean(odds, 9), local_mean(odds, 25), local_mean(p, 15),
        3 * (x - 0.4), 3 * (small - 0.4), 3 * (large - 0.4),
        off_click.mean(1, keepdim=True), unlike_click, local_mean(unlike_click, 5), local_mean(unlike_click, 13),
        off_inside.mean(1, keepdim=True).clamp(-4, 4) / 2, unlike_inside, local_mean(unlike_inside, 9),
        texture, local_mean(texture, 9),
        torch.exp(-positive / 3), torch.exp(-positive / 10), positive / _DISTANCE_SCALE,
        torch.exp(-negative / 3), torch.exp(-negative / 10),
        boxes, area.expand_as(grey),
    )  # fmt: skip
    return torch.cat(features, 1)


def _clicks(prompt: Prompt) -> Sequence[Point]:
    """Return the clicks that are certainly on the object; the centre of a box stands for a click."""
    if prompt.positive or prompt.box is None:
        return prompt.positive
    x0, y0, x1, y1 = prompt.box
    return (((x0 + x1) / 2, (y0 + y1) / 2),)


def _distance(points: Sequence[Point], scale: float) -> torch.Tensor:
    """Return the distance to the nearest point (X, Y, pixels) in cells, up to two ``_DISTANCE_SCALE``, (GRID, GRID)."""
    cells = torch.arange(GRID, dtype=torch.float32)
    nearest = torch.full((GRID, GRID), 2 * _DISTANCE_SCALE)
    for x, y in points:
        across, down = cells - ((x + 0.5) * scale - 0.5), cells - ((y + 0.5) * scale - 0.5)
        nearest = torch.minimum(nearest, (across.square() + down.square()[:, None]).sqrt())
    return nearest


def _inside(prompt: Prompt, scale: float) -> torch.Tensor:
    """Return 1 in the cells that a box touches and -1 outside, or 0 everywhere if there is no box, (GRID, GRID)."""
    if prompt.box is None:
        return torch.zeros(GRID, GRID)
    edges = torch.arange(GRID + 1) / scale - 0.5
    first, last = edges[:-1], edges[1:]
    x0, y0, x1, y1 = prompt.box
    across, down = (last > x0 - 0.5) & (first < x1 + 0.5), (last > y0 - 0.5) & (first < y1 + 0.5)
    return (across & down[:, None]).float() * 2 - 1


def _mean_where(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the weighted mean over each image, (B, C, 1, 1)."""
    return (values * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp(min=1e-6)
