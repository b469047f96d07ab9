"""Draw random views of a labelled volume, to augment the few training patients."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

_MAX_ROTATION = math.radians(15)
_MAX_LOG_SCALE = 0.25
_KNOTS = 6
_REMAPPED_SHARE = 0.5
_RECOLOURED_SHARE = 0.3
_BIASED_SHARE = 0.5
_CLIPPED_AIR = 0.13
"""Grey value of air in a CT that was clipped at -125 HU, as in the training volumes; in other CTs air is 0."""


def random_view(
    image: torch.Tensor, labels: torch.Tensor, size: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a cube at a random position, rotated and stretched, with changed intensities.

    Args:
        image: image, (1, H, W, D) in [0, 1], see ``preprocess``.
        labels: integers, (1, H, W, D).
        size: width of the cube, voxels.
        generator: random generator.

    Returns:
        Image and labels of the cube, (1, size, size, size) each; outside the volume both are 0.
    """
    grid = _random_grid(image.shape[1:], size, generator)
    view = F.grid_sample(image[None], grid, mode="bilinear", align_corners=False)[0]
    view_labels = F.grid_sample(labels[None].float(), grid, mode="nearest", align_corners=False)[0]
    if torch.rand((), generator=generator) < _RECOLOURED_SHARE:
        view = _recolour(view, view_labels, generator)
    return _augment_intensities(view, generator), view_labels.to(labels.dtype)


def _random_grid(shape: torch.Size, size: int, generator: torch.Generator) -> torch.Tensor:
    """Draw sampling positions, (1, size, size, size, 3), for ``grid_sample``: the last axis of the volume first."""
    sizes = torch.tensor(shape, dtype=torch.float32)
    room = (sizes - size).clamp(min=0) / 2
    middle = room * (2 * torch.rand(3, generator=generator) - 1)
    rotation = torch.eye(3)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        angle = _MAX_ROTATION * (2 * torch.rand((), generator=generator) - 1)
        plane = torch.eye(3)
        plane[first, first] = plane[second, second] = angle.cos()
        plane[first, second], plane[second, first] = -angle.sin(), angle.sin()
        rotation = rotation @ plane
    stretch = torch.exp(_MAX_LOG_SCALE * (2 * torch.rand(3, generator=generator) - 1))
    matrix = rotation @ torch.diag(stretch)
    axis = torch.arange(size) - (size - 1) / 2
    offsets = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    bend = torch.randn((1, 3, 5, 5, 5), generator=generator) * 2 * torch.rand((), generator=generator)
    warp = F.interpolate(bend, (size,) * 3, mode="trilinear", align_corners=True)[0].movedim(0, -1)
    positions = (offsets @ matrix.T + warp + middle) / (sizes / 2)
    return positions.flip(-1)[None]


def _augment_intensities(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    def chance(share: float) -> bool:
        return bool(torch.rand((), generator=generator) < share)

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    if chance(0.5):
        image = torch.where(image < _CLIPPED_AIR, 0.0, image)
    if chance(_REMAPPED_SHARE):
        image = _remap(image, generator)
    else:
        image = image.clamp(min=0) ** math.exp(between(-0.4, 0.4)) * between(0.8, 1.2) + between(-0.1, 0.1)
    if chance(_BIASED_SHARE):
        image = image.clamp(min=0) * _bias_field(image.shape[1:], between(0, 0.4), generator)
    if chance(0.3):  # Thick slices.
        image = _downsample(image, 2 + int(torch.randint(3, (), generator=generator)), axis=1 + _axis(generator))
    if chance(0.5):
        image = image + between(0, 0.08) * torch.randn(image.shape, generator=generator)
    return image.clamp(0, 1)


def _axis(generator: torch.Generator) -> int:
    return int(torch.randint(3, (), generator=generator))


def _remap(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Map grey values along a random broken line, which may fall, as between modalities. Dark remains dark."""
    heights = torch.rand(_KNOTS, generator=generator)
    heights[0] = 0
    if torch.rand((), generator=generator) < 0.5:
        heights = heights.sort().values
    position = image.clamp(0, 1) * (_KNOTS - 1)
    below = position.long().clamp(max=_KNOTS - 2)
    return torch.lerp(heights[below], heights[below + 1], position - below)


def _recolour(image: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Brighten or darken each organ by its own amount. Liver and spleen, which are alike in CT, differ in MR."""
    shifts = 0.6 * torch.rand(int(labels.max()) + 1, generator=generator) - 0.3
    shifts[0] = 0
    blurred = F.avg_pool3d(shifts[labels.long()][None], 3, 1, 1, count_include_pad=False)[0]
    return (image + blurred).clamp(0, 1)


def _bias_field(shape: torch.Size, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Draw a smooth factor for each voxel, as of a receiver coil: 1 in the mean of its logarithm."""
    knots = strength * torch.randn((1, 1, 3, 3, 3), generator=generator)
    return F.interpolate(knots, tuple(shape), mode="trilinear", align_corners=True)[0].exp()


def _downsample(image: torch.Tensor, factor: int, axis: int) -> torch.Tensor:
    """Resample as if voxels were ``factor`` times as long along an axis."""
    size = list(image.shape[1:])
    size[axis - 1] = max(size[axis - 1] // factor, 1)
    small = F.interpolate(image[None], size, mode="area")
    return F.interpolate(small, image.shape[1:], mode="trilinear", align_corners=False)[0]
