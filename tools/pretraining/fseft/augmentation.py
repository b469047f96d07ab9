"""Random views of a labelled volume: six patients have to teach what hundreds look like."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

_TURN = math.radians(15)
_SCALE = 0.25
_KNOTS = 6
_BENT = 0.5
_FLOOR = 0.13
"""Air of a CT that was clipped at -125 HU, as the volumes at hand were; a hospital's own has 0 there."""


def random_view(
    image: torch.Tensor, labels: torch.Tensor, side: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A cube at a random place, turned and stretched, with other intensities.

    Args:
        image: (1, H, W, D) in [0, 1], see ``preprocess``.
        labels: (1, H, W, D), whole numbers.
        side: of the cube, voxels.
        generator: all that is random comes from it.

    Returns:
        Image and labels of the cube, (1, side, side, side); beside the volume both are 0.
    """
    grid = _random_grid(image.shape[1:], side, generator)
    view = F.grid_sample(image[None], grid, mode="bilinear", align_corners=False)[0]
    seen = F.grid_sample(labels[None].float(), grid, mode="nearest", align_corners=False)[0]
    return _other_intensities(view, generator), seen.to(labels.dtype)


def _random_grid(shape: torch.Size, side: int, generator: torch.Generator) -> torch.Tensor:
    """Where to look, (1, side, side, side, 3), as ``grid_sample`` counts: the last axis of the volume first."""
    sizes = torch.tensor(shape, dtype=torch.float32)
    room = (sizes - side).clamp(min=0) / 2
    middle = room * (2 * torch.rand(3, generator=generator) - 1)
    turn = torch.eye(3)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        angle = _TURN * (2 * torch.rand((), generator=generator) - 1)
        plane = torch.eye(3)
        plane[first, first] = plane[second, second] = angle.cos()
        plane[first, second], plane[second, first] = -angle.sin(), angle.sin()
        turn = turn @ plane
    stretch = torch.exp(_SCALE * (2 * torch.rand(3, generator=generator) - 1))
    matrix = turn @ torch.diag(stretch)
    axis = torch.arange(side) - (side - 1) / 2
    offsets = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    bend = torch.randn((1, 3, 5, 5, 5), generator=generator) * 2 * torch.rand((), generator=generator)
    warp = F.interpolate(bend, (side,) * 3, mode="trilinear", align_corners=True)[0].movedim(0, -1)
    places = (offsets @ matrix.T + warp + middle) / (sizes / 2)
    return places.flip(-1)[None]


def _other_intensities(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    def chance(share: float) -> bool:
        return bool(torch.rand((), generator=generator) < share)

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    if chance(0.5):
        image = torch.where(image < _FLOOR, 0.0, image)
    if chance(_BENT):
        image = _bent(image, generator)
    else:
        image = image.clamp(min=0) ** math.exp(between(-0.4, 0.4)) * between(0.8, 1.2) + between(-0.1, 0.1)
    if chance(0.3):  # Thick slices.
        image = _coarser(image, 2 + int(torch.randint(3, (), generator=generator)), axis=1 + _axis(generator))
    if chance(0.5):
        image = image + between(0, 0.08) * torch.randn(image.shape, generator=generator)
    return image.clamp(0, 1)


def _axis(generator: torch.Generator) -> int:
    return int(torch.randint(3, (), generator=generator))


def _bent(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Grey values along a random broken line, which may fall: as another modality would show them. Dark stays dark."""
    heights = torch.rand(_KNOTS, generator=generator)
    heights[0] = 0
    if torch.rand((), generator=generator) < 0.5:
        heights = heights.sort().values
    place = image.clamp(0, 1) * (_KNOTS - 1)
    below = place.long().clamp(max=_KNOTS - 2)
    return torch.lerp(heights[below], heights[below + 1], place - below)


def _coarser(image: torch.Tensor, factor: int, axis: int) -> torch.Tensor:
    """As if voxels were ``factor`` times as long along an axis."""
    size = list(image.shape[1:])
    size[axis - 1] = max(size[axis - 1] // factor, 1)
    small = F.interpolate(image[None], size, mode="area")
    return F.interpolate(small, image.shape[1:], mode="trilinear", align_corners=False)[0]
