"""What the output-side head knows of a pixel: the black box's answer, the image, and how both relate to the clicks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from baps.adapters.visual_prompt.local_mean import local_mean
from baps.prompts import Point, Prompt

GRID = 64
"""The head looks at every image on a grid of so many cells along each side."""

FEATURES = 30
"""Numbers a cell."""

_CLICK = 1.5
_FAR = 27.0


def as_logit(probability: torch.Tensor) -> torch.Tensor:
    """Log odds, bounded to about +-6."""
    return torch.logit(probability.clamp(0.002, 0.998))


def head_features(images: torch.Tensor, probability: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
    """Features of each cell, without a graph.

    Args:
        images: as they were before the visual prompt changed them, (B, 3, S, S) float in [0, 255].
        probability: what the black box answered, (B, S, S).
        prompts: one an image, pixels of the canvas of S pixels.

    Returns:
        (B, FEATURES, GRID, GRID), of about unit size; the first is a third of the log odds.
    """
    scale = GRID / images.shape[-1]
    x = F.adaptive_avg_pool2d(images / 255.0, GRID)
    p = F.adaptive_avg_pool2d(probability[:, None], GRID)
    grey, odds = x.mean(1, keepdim=True), as_logit(p) / 3
    positive = torch.stack([_distance(_clicks(prompt), scale) for prompt in prompts])[:, None]
    negative = torch.stack([_distance(prompt.negative, scale) for prompt in prompts])[:, None]
    boxes = torch.stack([_inside(prompt, scale) for prompt in prompts])[:, None]
    small, large = local_mean(x, 3), local_mean(x, 9)
    clicked = _mean_where(x, torch.exp(-positive.square() / (2 * _CLICK**2)))
    answered = (p > 0.5) * p + 1e-4
    inside = _mean_where(x, answered)
    spread = _mean_where((x - inside).square(), answered).sqrt().clamp(min=0.02)
    off_click = 6 * (small - clicked)
    unlike_click = off_click.abs().mean(1, keepdim=True)
    off_inside = (small - inside) / spread
    unlike_inside = off_inside.abs().mean(1, keepdim=True).clamp(max=5) / 2
    texture = 10 * (local_mean(grey.square(), 7) - local_mean(grey, 7).square()).clamp(min=0).sqrt()
    area = 3 * answered.mean((2, 3), keepdim=True).sqrt()
    features = (
        odds, local_mean(odds, 3), local_mean(odds, 9), local_mean(odds, 25), local_mean(p, 15),
        3 * (x - 0.4), 3 * (small - 0.4), 3 * (large - 0.4),
        off_click.mean(1, keepdim=True), unlike_click, local_mean(unlike_click, 5), local_mean(unlike_click, 13),
        off_inside.mean(1, keepdim=True).clamp(-4, 4) / 2, unlike_inside, local_mean(unlike_inside, 9),
        texture, local_mean(texture, 9),
        torch.exp(-positive / 3), torch.exp(-positive / 10), positive / _FAR,
        torch.exp(-negative / 3), torch.exp(-negative / 10),
        boxes, area.expand_as(grey),
    )  # fmt: skip
    return torch.cat(features, 1)


def _clicks(prompt: Prompt) -> Sequence[Point]:
    """Where the object is for certain; the middle of a box stands for a click."""
    if prompt.positive or prompt.box is None:
        return prompt.positive
    x0, y0, x1, y1 = prompt.box
    return (((x0 + x1) / 2, (y0 + y1) / 2),)


def _distance(points: Sequence[Point], scale: float) -> torch.Tensor:
    """Cells to the nearest of some points in pixels, (GRID, GRID), two ``_FAR`` at the most."""
    places = torch.arange(GRID, dtype=torch.float32)
    found = torch.full((GRID, GRID), 2 * _FAR)
    for x, y in points:
        across, down = places - ((x + 0.5) * scale - 0.5), places - ((y + 0.5) * scale - 0.5)
        found = torch.minimum(found, (across.square() + down.square()[:, None]).sqrt())
    return found


def _inside(prompt: Prompt, scale: float) -> torch.Tensor:
    """1 in the cells that a box touches, -1 around it, 0 where there is none, (GRID, GRID)."""
    if prompt.box is None:
        return torch.zeros(GRID, GRID)
    edges = torch.arange(GRID + 1) / scale - 0.5
    first, last = edges[:-1], edges[1:]
    x0, y0, x1, y1 = prompt.box
    across, down = (last > x0 - 0.5) & (first < x1 + 0.5), (last > y0 - 0.5) & (first < y1 + 0.5)
    return (across & down[:, None]).float() * 2 - 1


def _mean_where(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted mean over each image, (B, C, 1, 1)."""
    return (values * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp(min=1e-6)
