"""Compute statistics of an image: features that need no weights."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from typing_extensions import override

from baps.adapters.visual_prompt.encoder import Encoder

_GRID = 8
_COLOUR_GRID = 4
_QUANTILES = 32
_EDGE_QUANTILES = 16

STATISTICS = 2 * _GRID**2 + 3 * _COLOUR_GRID**2 + _QUANTILES + _EDGE_QUANTILES
"""Number of features that ``image_statistics`` returns."""


def image_statistics(images: torch.Tensor) -> torch.Tensor:
    """Compute brightness, local spread, colour, grey-value quantiles and edge strengths.

    Args:
        images: images, (B, 3, S, S) float in [0, 255].

    Returns:
        Features, (B, STATISTICS), of about unit scale.
    """
    x = images / 255.0
    grey = x.mean(1, keepdim=True)
    mean = F.adaptive_avg_pool2d(grey, _GRID)
    spread = (F.adaptive_avg_pool2d(grey.square(), _GRID) - mean.square()).clamp(min=0).sqrt()
    colour = F.adaptive_avg_pool2d(x, _COLOUR_GRID)
    small = F.adaptive_avg_pool2d(grey, 64)
    levels = small.flatten(1).quantile(torch.linspace(0.01, 0.99, _QUANTILES, device=x.device), dim=1).T
    across = (small[..., 1:, :-1] - small[..., :-1, :-1]).square()
    along = (small[..., :-1, 1:] - small[..., :-1, :-1]).square()
    edges = (across + along).sqrt().flatten(1)
    edge_levels = edges.quantile(torch.linspace(0.1, 0.99, _EDGE_QUANTILES, device=x.device), dim=1).T
    parts = [(mean - 0.35) * 4, (spread - 0.08) * 10, (colour - 0.35) * 4, (levels - 0.35) * 4, edge_levels * 6 - 0.5]
    return torch.cat([part.flatten(1) for part in parts], 1)


class ImageStatistics(Encoder):
    """The default encoder: ``image_statistics``.

    Attributes:
        name: ``statistics``.
        length: number of features per image.
    """

    name = "statistics"
    length = STATISTICS

    @override
    def to_dict(self) -> dict[str, str]:
        return {"name": self.name, "source": "", "sha256": ""}

    @torch.no_grad()
    @override
    def features(self, images: torch.Tensor) -> torch.Tensor:
        return image_statistics(images)
