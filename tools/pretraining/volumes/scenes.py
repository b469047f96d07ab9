"""Draw procedural volumes of overlapping solids with their masks: the training data of the bundled volumetric model.

Neither medical images nor the generator of the sample data are used. A scene holds ellipsoids, rods, bent solids, boxes
and shells over one another, in a fifth of the scenes over a tiling, each with a brightness and a texture. Then the
scanner is simulated: blur, uneven sensitivity, noise, thick slices, a limited field of view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class VolumeScenes:
    """A batch of volumes.

    Attributes:
        images: grey values, (B, S, S, S) float.
        regions: number of the visible object at each voxel, 0 for the background, (B, S, S, S) integers.
    """

    images: torch.Tensor
    regions: torch.Tensor


def _uniform(generator: torch.Generator, shape: tuple[int, ...], low: float, high: float) -> torch.Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def _chance(generator: torch.Generator, share: float) -> bool:
    return bool(torch.rand((), generator=generator) < share)


def smooth_noise(generator: torch.Generator, count: int, size: int, cells: int) -> torch.Tensor:
    """Draw fields of about unit standard deviation that vary over ``size / cells`` voxels.

    Args:
        generator: random generator.
        count: number of fields, N.
        size: voxels along each side, S.
        cells: number of cells along each side.

    Returns:
        Fields, (N, S, S, S).
    """
    coarse = torch.randn((count, 1, *(cells + 2,) * 3), generator=generator)
    field = F.interpolate(coarse, size=(size * (cells + 2)) // cells, mode="trilinear", align_corners=False)
    start = (field.shape[-1] - size) // 2
    part = slice(start, start + size)
    return field[:, 0, part, part, part] * 1.7


def _positions(size: int) -> torch.Tensor:
    """Return the position of each voxel, (3, S, S, S), from -1 to 1."""
    axis = torch.linspace(-1, 1, size)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))


def _rotations(generator: torch.Generator, count: int) -> torch.Tensor:
    """Draw rotations uniformly, (N, 3, 3), from unit quaternions."""
    w, x, y, z = F.normalize(torch.randn((count, 4), generator=generator), dim=1).unbind(1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)], 1),
        torch.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)], 1),
        torch.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)], 1),
    ]
    return torch.stack(rows, 1)


def _paint(generator: torch.Generator, size: int, layers: int) -> torch.Tensor:
    """Draw the regions of one scene, (S, S, S): solids over one another, in a fifth of the scenes over a tiling."""
    where = _positions(size)
    where = where + smooth_noise(generator, 3, size, int(torch.randint(2, 5, (), generator=generator))) * float(
        _uniform(generator, (), 0.02, 0.12)
    )
    edges = smooth_noise(generator, 2, size, 5)
    regions = torch.zeros((size,) * 3, dtype=torch.long)
    if _chance(generator, 0.2):
        seeds = _uniform(generator, (8, 3), -1, 1)
        distance = torch.cdist(where.reshape(3, -1).T, seeds)
        regions = distance.argmin(1).view(size, size, size) + layers + 1
    rotations = _rotations(generator, layers)
    for layer in range(layers):
        large = layer == 0 and _chance(generator, 0.65)  # One large solid that contains the others, as a body does.
        radius = math.exp(float(_uniform(generator, (), math.log(0.12), math.log(0.85))))
        centre = _uniform(generator, (3,), -0.9, 0.9)
        stretch = torch.exp(_uniform(generator, (3,), -0.55, 0.55))
        if _chance(generator, 0.15):  # A rod.
            stretch = torch.tensor([3.0, 0.6, 0.6]) * torch.exp(_uniform(generator, (3,), -0.2, 0.2))
            radius = min(radius, 0.25)
        if large:
            radius, centre, stretch = float(_uniform(generator, (), 0.75, 1.2)), centre * 0.2, stretch**0.5
        offset = (where - centre.view(3, 1, 1, 1)).reshape(3, -1)
        along = ((rotations[layer] @ offset) / (radius * stretch).unsqueeze(1)).view(3, size, size, size)
        if _chance(generator, 0.4):  # Bend it.
            along[1] += float(_uniform(generator, (), -0.7, 0.7)) * (along[0].square() - 0.4)
        kind = float(torch.rand((), generator=generator))
        if kind < 0.75:
            field = along.square().sum(0).sqrt() - 1
        elif kind < 0.9:
            field = along.abs().amax(0) - 0.8
        else:
            field = along.abs().sum(0) - 1.3
        if _chance(generator, 0.06):  # A shell.
            field = field.abs() - float(_uniform(generator, (), 0.1, 0.3))
        field = field + edges[layer % 2] * float(_uniform(generator, (), 0.0, 0.15))
        regions = torch.where(field < 0, layer + 1, regions)
    return regions


def _blur(images: torch.Tensor, width: float) -> torch.Tensor:
    """Blur volumes (B, S, S, S) by a Gaussian of a standard deviation in voxels."""
    radius = max(1, int(2.5 * width + 0.5))
    axis = torch.arange(-radius, radius + 1).float()
    kernel = torch.exp(-axis.square() / (2 * width * width))
    kernel = kernel / kernel.sum()
    x = images.unsqueeze(1)
    for dimension in range(3):
        shape, padding = [1, 1, 1, 1, 1], [0, 0, 0]
        shape[2 + dimension], padding[dimension] = len(kernel), radius
        pad = [one for each in reversed(padding) for one in (each, each)]
        x = F.conv3d(F.pad(x, pad, mode="replicate"), kernel.view(*shape))
    return x[:, 0]


def _thick_slices(generator: torch.Generator, images: torch.Tensor) -> torch.Tensor:
    """Resample volumes as if their slices were two to six voxels thick along a random axis."""
    size = list(images.shape[1:])
    axis = int(torch.randint(3, (), generator=generator))
    size[axis] = max(8, round(size[axis] / float(_uniform(generator, (), 1.5, 5.0))))
    small = F.interpolate(images.unsqueeze(1), size, mode="area")
    return F.interpolate(small, images.shape[1:], mode="trilinear", align_corners=False)[:, 0]


def _cut_field_of_view(generator: torch.Generator, image: torch.Tensor, regions: torch.Tensor) -> None:
    """Set what lies beyond a random plane across an axis to the darkest value, without objects, in place."""
    axis, size = int(torch.randint(3, (), generator=generator)), image.shape[0]
    depth = int(_uniform(generator, (), 0.05, 0.45) * size)
    part = slice(0, depth) if _chance(generator, 0.5) else slice(size - depth, size)
    where = tuple(part if one == axis else slice(None) for one in range(3))
    image[where] = image.min()
    regions[where] = 0


def draw_volume_scenes(generator: torch.Generator, batch: int, size: int) -> VolumeScenes:
    """Draw a batch of scenes.

    Args:
        generator: random generator.
        batch: number of volumes, B.
        size: voxels along each side, S.

    Returns:
        The scenes.
    """
    images, all_regions = [], []
    for _ in range(batch):
        layers = int(torch.randint(4, 15, (), generator=generator))
        regions = _paint(generator, size, layers)
        count = layers + 9
        spread = float(_uniform(generator, (), 0.08, 0.35)) if _chance(generator, 0.65) else 1.0
        level = float(_uniform(generator, (), 0.3, 0.7)) + _uniform(generator, (count,), -0.5, 0.5) * spread
        dark_ground = _chance(generator, 0.6)
        if dark_ground:
            level[0] = _uniform(generator, (), -0.2, 0.1)
        textures = torch.cat([smooth_noise(generator, 1, size, cells) for cells in (4, 10, size // 4)])
        strength = (
            float(_uniform(generator, (), 0, 1)) ** 2 * 0.4 * max(spread, 0.2) * torch.rand(count, generator=generator)
        )
        if dark_ground:
            strength[0] = 0
        texture = torch.randint(len(textures), (count,), generator=generator)
        image = level[regions] + strength[regions] * textures.gather(0, texture[regions].unsqueeze(0))[0]
        if _chance(generator, 0.3):  # A thin outline around the objects, darker or brighter.
            padded = F.pad(regions.float()[None, None], (1,) * 6, mode="replicate")
            outline = (F.max_pool3d(padded, 3, 1) != -F.max_pool3d(-padded, 3, 1))[0, 0]
            image = image + outline * float(_uniform(generator, (), -0.3, 0.3)) * max(spread, 0.3)
        x, y, z = _positions(size)
        slope = torch.randn(3, generator=generator) * float(_uniform(generator, (), 0.0, 0.12))
        image = image * (1 + slope[0] * x + slope[1] * y + slope[2] * z)
        image = image[None]
        if _chance(generator, 0.7):
            image = _blur(image, float(_uniform(generator, (), 0.4, 1.4)))
        noise = torch.randn(image.shape, generator=generator) * float(_uniform(generator, (), 0, 1)) ** 3 * 0.3
        if _chance(generator, 0.4):
            noise = _blur(noise, 0.8) * 3
        image = image + noise * max(spread, 0.25)
        if _chance(generator, 0.4):
            image = _thick_slices(generator, image)
        image = image[0]
        if _chance(generator, 0.2):  # A bright rest, such as bone, that takes most of the range of grey values.
            bright = torch.rand(count, generator=generator) < 0.2
            image = image + bright[regions] * float(_uniform(generator, (), 0.5, 2.0))
        if _chance(generator, 0.15):
            image = -image
        if _chance(generator, 0.25):
            _cut_field_of_view(generator, image, regions)
        images.append(image)
        all_regions.append(regions)
    return VolumeScenes(torch.stack(images), torch.stack(all_regions))
