"""Draw procedural pictures of overlapping shapes with their masks: the training data of the bundled model.

Neither medical images nor the generator of the sample data are used. A scene is painted from back to front: blobs,
tubes, rings, cells and polygons, each filled with a brightness, a gradient and a texture (noise or a piece of a
photograph). Some are barely brighter than what they lie on, and some differ only by a thin outline. Then the camera is
simulated: blur, uneven light, gamma, noise, a window, sometimes colour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Scenes:
    """A batch of pictures.

    Attributes:
        images: pictures, (B, 3, S, S) float in [0, 255].
        regions: number of the visible object at each pixel, 0 for the background, (B, S, S) integers.
    """

    images: torch.Tensor
    regions: torch.Tensor


def _uniform(generator: torch.Generator, shape: tuple[int, ...], low: float, high: float) -> torch.Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def smooth_noise(generator: torch.Generator, count: int, size: int, cells: int) -> torch.Tensor:
    """Draw fields of about unit standard deviation that vary over ``size / cells`` pixels.

    Args:
        generator: random generator.
        count: number of fields, N.
        size: width and height, pixels.
        cells: number of cells along each side.

    Returns:
        Fields, (N, size, size).
    """
    coarse = torch.randn((count, 1, cells + 3, cells + 3), generator=generator)
    field = F.interpolate(coarse, size=(size * (cells + 3)) // cells, mode="bicubic", align_corners=False)
    start = (field.shape[-1] - size) // 2
    return field[:, 0, start : start + size, start : start + size] * 1.3


def _shape_fields(generator: torch.Generator, batch: int, size: int, layers: int) -> torch.Tensor:
    """Draw implicit functions (B, L, S, S), negative inside the shape, in units of roughly the shape's radius."""
    axis = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    warp = torch.stack(
        [smooth_noise(generator, batch, size, int(c)) for c in torch.randint(2, 6, (2,), generator=generator)], 1
    )
    warp = warp * _uniform(generator, (batch, 1, 1, 1), 0.02, 0.2)
    x, y = x + warp[:, 0], y + warp[:, 1]
    centre = _uniform(generator, (2, batch, layers, 1, 1), -0.95, 0.95)
    angle = _uniform(generator, (batch, layers, 1, 1), 0, math.pi)
    radius = torch.exp(_uniform(generator, (batch, layers, 1, 1), math.log(0.035), math.log(0.6)))
    aspect = torch.exp(_uniform(generator, (batch, layers, 1, 1), 0.0, 1.3))
    # The first layer is often one large shape that contains most of the others, as a table or a cell does.
    large = torch.rand((batch, 1, 1, 1), generator=generator) < 0.5
    radius[:, :1] = torch.where(large, _uniform(generator, (batch, 1, 1, 1), 0.6, 0.95), radius[:, :1])
    aspect[:, :1] = torch.where(large, _uniform(generator, (batch, 1, 1, 1), 1.0, 1.6), aspect[:, :1])
    centre[:, :, :1] = torch.where(large, centre[:, :, :1] * 0.15, centre[:, :, :1])
    dx, dy = x.unsqueeze(1) - centre[0], y.unsqueeze(1) - centre[1]
    along = (dx * angle.cos() + dy * angle.sin()) / (radius * aspect.sqrt())
    across = (dy * angle.cos() - dx * angle.sin()) / (radius / aspect.sqrt())
    # Bend some shapes into kidneys and bananas.
    bend = torch.where(
        torch.rand((batch, layers, 1, 1), generator=generator) < 0.35,
        _uniform(generator, (batch, layers, 1, 1), -0.7, 0.7),
        torch.zeros(1),
    )
    across = across + bend * (along.square() - 0.4)
    along, across = along.abs(), across.abs()
    round_ = torch.sqrt(along.square() + across.square()) - 1
    square = torch.maximum(along, across) - 0.85
    diamond = along + across - 1.15
    kind = torch.rand((batch, layers, 1, 1), generator=generator)
    field = torch.where(kind < 0.72, round_, torch.where(kind < 0.86, square, diamond))
    # Turn some shapes into rings: outside is what is far from the outline on either side.
    ring = torch.rand((batch, layers, 1, 1), generator=generator) < 0.06
    width = _uniform(generator, (batch, layers, 1, 1), 0.1, 0.35)
    field = torch.where(ring, field.abs() - width, field)
    # The layers share a few edge fields, because one for each would cost more than all the rest.
    edges = smooth_noise(generator, batch * 3, size, 6).view(batch, 3, size, size)
    edge = edges[:, torch.randint(3, (layers,), generator=generator)]
    return field + edge * _uniform(generator, (batch, layers, 1, 1), 0.0, 0.18)


def _cells(generator: torch.Generator, batch: int, size: int, layers: int) -> torch.Tensor:
    """Draw the regions (B, S, S) of a random tiling, 1 to ``layers``."""
    axis = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    bent = [smooth_noise(generator, batch, size, 4) * 0.08 for _ in range(2)]
    seeds = _uniform(generator, (2, batch, layers, 1, 1), -1, 1)
    distance = ((x + bent[0]).unsqueeze(1) - seeds[0]).square() + ((y + bent[1]).unsqueeze(1) - seeds[1]).square()
    return distance.argmin(1) + 1


def _paint(generator: torch.Generator, batch: int, size: int, layers: int) -> torch.Tensor:
    """Draw regions (B, S, S): shapes over one another, in a fifth of the pictures over a tiling."""
    fields = _shape_fields(generator, batch, size, layers)
    order = torch.arange(1, layers + 1).view(1, layers, 1, 1)
    shown = torch.rand((batch, layers, 1, 1), generator=generator) < _uniform(generator, (batch, 1, 1, 1), 0.4, 1.0)
    regions = torch.where((fields < 0) & shown, order, torch.zeros(1, dtype=torch.long)).amax(1)
    tiled = torch.rand((batch, 1, 1), generator=generator) < 0.2
    rows = tiled.flatten().nonzero().flatten()
    tiles = torch.zeros_like(regions)
    if len(rows):
        tiles[rows] = _cells(generator, len(rows), size, 8) + layers
    return torch.where(regions == 0, tiles, regions)


def _texture(generator: torch.Generator, batch: int, size: int, photographs: torch.Tensor | None) -> torch.Tensor:
    """Draw zero-mean textures (B, T, S, S) at several scales; the last is a piece of a grey photograph, if any."""
    fields = [smooth_noise(generator, batch, size, cells) for cells in (4, 12, size // 5, size // 2)]
    fields.append(fields[1] * fields[2])
    if photographs is not None:
        crops = torch.stack([_crop_photograph(generator, photographs, size) for _ in range(batch)])
        grey = crops.mean(1)
        grey = grey - grey.mean((1, 2), keepdim=True)
        fields.append(grey / (grey.std((1, 2), keepdim=True) + 4.0))
    return torch.stack(fields, 1)


def _crop_photograph(generator: torch.Generator, photographs: torch.Tensor, size: int) -> torch.Tensor:
    """Crop a random square of a random photograph, (3, S, S)."""
    pick = int(torch.randint(len(photographs), (1,), generator=generator))
    full = photographs.shape[-1]
    side = int(torch.randint(min(size // 2, full // 2), full, (1,), generator=generator))
    top, left = (int(v) for v in torch.randint(0, full - side + 1, (2,), generator=generator))
    crop = photographs[pick : pick + 1, :, top : top + side, left : left + side].float()
    return F.interpolate(crop, size=(size, size), mode="bilinear", align_corners=False)[0]


def _blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    radius = max(1, int(3 * sigma + 0.5))
    axis = torch.arange(-radius, radius + 1).float()
    kernel = torch.exp(-(axis.square()) / (2 * sigma * sigma))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    flat = images.reshape(-1, 1, *images.shape[-2:])
    flat = F.conv2d(F.pad(flat, (radius, radius, 0, 0), mode="replicate"), kernel)
    flat = F.conv2d(F.pad(flat, (0, 0, radius, radius), mode="replicate"), kernel.transpose(2, 3))
    return flat.view_as(images)


def draw_scenes(generator: torch.Generator, batch: int, size: int, photographs: torch.Tensor | None = None) -> Scenes:
    """Draw a batch of scenes.

    Args:
        generator: random generator.
        batch: number of pictures, B.
        size: width and height of the pictures, pixels.
        photographs: photographs that supply textures, (N, 3, F, F) uint8, or None.

    Returns:
        The scenes.
    """
    layers = int(torch.randint(4, 15, (1,), generator=generator))
    regions = _paint(generator, batch, size, layers)
    count = layers + 9
    flat = regions.view(batch, -1)

    def per_region(table: torch.Tensor) -> torch.Tensor:
        """Look up (B, count) values at every pixel."""
        return table.gather(1, flat).view(batch, size, size)

    level = _uniform(generator, (batch, count), 0.0, 1.0)
    # In many pictures the objects have nearly the same brightness.
    spread = torch.where(
        torch.rand((batch, 1), generator=generator) < 0.6,
        _uniform(generator, (batch, 1), 0.08, 0.35),
        torch.ones(1),
    )
    centre = _uniform(generator, (batch, 1), 0.25, 0.75)
    level = centre + (level - 0.5) * spread
    dark_ground = torch.rand(batch, generator=generator) < 0.45
    level[:, 0] = torch.where(dark_ground, _uniform(generator, (batch,), 0.0, 0.1), level[:, 0])
    grey = per_region(level)

    textures = _texture(generator, batch, size, photographs)
    kinds = textures.shape[1]
    amount = _uniform(generator, (batch, 1), 0.0, 1.0).square() * 0.5 * spread.clamp(min=0.2)
    choice = torch.randint(kinds, (batch, count), generator=generator)
    strength = amount * _uniform(generator, (batch, count), 0.0, 1.0)
    strength[:, 0] = torch.where(dark_ground, torch.zeros(1), strength[:, 0])
    picked = textures.gather(1, per_region(choice).unsqueeze(1))[:, 0]
    grey = grey + picked * per_region(strength)

    # A thin outline, darker or brighter, around the objects of some pictures.
    padded = F.pad(regions.float().unsqueeze(1), (1, 1, 1, 1), mode="replicate")
    outline = (F.max_pool2d(padded, 3, 1) != -F.max_pool2d(-padded, 3, 1))[:, 0].float()
    drawn = (torch.rand((batch, 1, 1), generator=generator) < 0.35).float()
    gaps = (smooth_noise(generator, batch, size, 8) > -0.7).float()
    grey = grey + outline * gaps * drawn * _uniform(generator, (batch, 1, 1), -0.3, 0.3)

    axis = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    slope = torch.randn((2, batch, 1, 1), generator=generator) * _uniform(generator, (batch, 1, 1), 0.0, 0.15)
    light = (
        1
        + slope[0] * x
        + slope[1] * y
        + smooth_noise(generator, batch, size, 2) * _uniform(generator, (batch, 1, 1), 0.0, 0.15)
    )
    grey = grey * light
    grey = torch.where(
        torch.rand((batch, 1, 1), generator=generator) < 0.6,
        _blur(grey, float(_uniform(generator, (1,), 0.4, 1.0 + size / 128))),
        grey,
    )
    noise = torch.randn(grey.shape, generator=generator)
    noise = torch.where(torch.rand((batch, 1, 1), generator=generator) < 0.4, _blur(noise, 0.8) * 2.2, noise)
    speckle = torch.rand((batch, 1, 1), generator=generator) < 0.2
    strength_noise = _uniform(generator, (batch, 1, 1), 0.0, 1.0) ** 3 * 0.2
    grey = torch.where(
        speckle, grey * (1 + noise * strength_noise * 3), grey + noise * strength_noise * spread.view(-1, 1, 1)
    )

    images = grey.unsqueeze(1).repeat(1, 3, 1, 1)
    coloured = torch.rand((batch, 1, 1, 1), generator=generator) < 0.4
    tint = 1 + torch.randn((batch, 3, count), generator=generator) * 0.25
    tints = torch.stack([per_region(tint[:, c]) for c in range(3)], 1)
    images = torch.where(coloured, images * tints, images)

    sampled = images[:, :, ::4, ::4].flatten(1)
    low = sampled.quantile(0.01, dim=1).view(-1, 1, 1, 1)
    high = sampled.quantile(0.99, dim=1).view(-1, 1, 1, 1)
    images = (images - low) / (high - low + 1e-3)
    images = images * _uniform(generator, (batch, 1, 1, 1), 0.6, 1.3) + _uniform(
        generator, (batch, 1, 1, 1), -0.1, 0.25
    )
    gamma = torch.exp(_uniform(generator, (batch, 1, 1, 1), -0.7, 0.7))
    images = images.clamp(0, 1) ** gamma
    inverted = torch.rand((batch, 1, 1, 1), generator=generator) < 0.15
    images = torch.where(inverted, 1 - images, images)
    return Scenes(images=(images * 255).round(), regions=regions)
