"""Draw targets and prompts for training volumes: which object, and how it is marked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

from tools.pretraining.volumes.scenes import VolumeScenes

_MIN_VOXELS = 300
"""Size of the smallest target."""


@dataclass(frozen=True)
class VolumeTargets:
    """Targets and their prompts, all (N, S, S, S) float.

    Attributes:
        scene: index of the scene of each target, (N,) integers.
        targets: the objects, 0 or 1.
        masks: a wrong mask to be corrected, 0 or 1; empty for most.
        positive: 1 where clicks and scribbles mark the object.
        negative: 1 where clicks mark something else.
        region: 1 inside boxes and lassos.
    """

    scene: torch.Tensor
    targets: torch.Tensor
    masks: torch.Tensor
    positive: torch.Tensor
    negative: torch.Tensor
    region: torch.Tensor


def draw_volume_targets(generator: torch.Generator, scenes: VolumeScenes, per_scene: int) -> VolumeTargets:
    """Draw objects in each scene, and prompts for them.

    About half of the targets have clicks, a quarter a box, and the others a box or a lasso in one slice, or a scribble.
    A third also have a wrong mask, with clicks on its errors.

    Args:
        generator: random generator.
        scenes: the volumes.
        per_scene: maximum number of objects per scene.

    Returns:
        The targets.
    """
    rows: list[tuple[torch.Tensor, ...]] = []
    index: list[int] = []
    for number, regions in enumerate(scenes.regions):
        for target, others in _objects(generator, regions, per_scene):
            rows.append((target, *_prompts(generator, target, others)))
            index.append(number)
    return VolumeTargets(torch.tensor(index), *(torch.stack(one).float() for one in zip(*rows, strict=True)))


def _objects(
    generator: torch.Generator, regions: torch.Tensor, per_scene: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Draw different objects, each one connected piece, and another object for each: pairs of (S, S, S) bool."""
    sizes = torch.bincount(regions.flatten())
    sizes[0] = 0
    candidates = (sizes >= _MIN_VOXELS).nonzero().flatten()
    order = candidates[torch.randperm(len(candidates), generator=generator)].tolist()
    found = []
    for place, number in enumerate(order[:per_scene]):
        pieces, _ = ndimage.label((regions == number).numpy())
        counts = np.bincount(pieces.ravel())
        counts[0] = 0
        if counts.max() >= _MIN_VOXELS:
            other = order[(place + 1) % len(order)]
            found.append((torch.from_numpy(pieces == counts.argmax()), (regions == other) & (regions != number)))
    if not found:  # Without an object, the target is the background.
        found.append((regions == 0, torch.zeros_like(regions, dtype=torch.bool)))
    return found


def _prompts(generator: torch.Generator, target: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Draw the mask, positive, negative and region of a target, (S, S, S) bool each."""
    mask, positive, negative, region = (torch.zeros_like(target) for _ in range(4))
    kind = float(torch.rand((), generator=generator))
    if kind < 0.5:
        _click(generator, target, positive)
    elif kind < 0.78:
        _box(generator, target, region, None)
    elif kind < 0.84:
        _box(generator, target, region, int(torch.randint(3, (), generator=generator)))
    elif kind < 0.9:
        _lasso(generator, target, region)
    elif kind < 0.95:
        _scribble(generator, target, positive)
    else:
        _click(generator, target, positive)
    if kind >= 0.95 or float(torch.rand((), generator=generator)) < 0.3:
        mask = _wrong(generator, target, other)
        for wrong, marks in ((target & ~mask, positive), (mask & ~target, negative)):
            if wrong.sum() > 20:
                _click(generator, wrong, marks)
    elif float(torch.rand((), generator=generator)) < 0.35:
        near = (_pooled(target, 13) > 0) & ~target
        for _ in range(int(torch.randint(1, 4, (), generator=generator))):
            inside = float(torch.rand((), generator=generator)) < 0.5
            _click(generator, target if inside or not near.any() else near, positive if inside else negative)
    return mask, positive, negative, region


def _pooled(marked: torch.Tensor, width: int) -> torch.Tensor:
    """Return the share of marked voxels in a cube of an odd width around each voxel."""
    x = marked.float()[None, None]
    for kernel in ((width, 1, 1), (1, width, 1), (1, 1, width)):
        x = F.avg_pool3d(x, kernel, 1, tuple(one // 2 for one in kernel))
    return x[0, 0]


def _click(generator: torch.Generator, inside: torch.Tensor, marks: torch.Tensor) -> None:
    """Mark one voxel, mostly deep inside."""
    weight = inside.float()
    if torch.rand((), generator=generator) < 0.7:
        weight = weight * _pooled(inside, 9) ** 4
    if not weight.any():
        return
    marks.view(-1)[_draw(generator, weight)] = True


def _draw(generator: torch.Generator, weight: torch.Tensor) -> int:
    total = weight.flatten().double().cumsum(0)
    return int(
        torch.searchsorted(total, torch.rand((), generator=generator).double() * total[-1]).clamp(max=len(total) - 1)
    )


def _extent(target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first voxel and the one after the last, (3,) float each."""
    where = target.nonzero().float()
    return where.amin(0), where.amax(0) + 1


def _box(generator: torch.Generator, target: torch.Tensor, region: torch.Tensor, flat: int | None) -> None:
    """Fill a box whose sides are off by 5 % (standard deviation), in one slice across an axis or in all."""
    part = target
    if flat is not None:
        where = target.nonzero()[:, flat]
        index = int(where[int(torch.randint(len(where), (), generator=generator))])
        part = torch.zeros_like(target)
        selection = tuple(index if axis == flat else slice(None) for axis in range(3))
        part[selection] = target[selection]
    low, high = _extent(part)
    side = high - low
    low = low + torch.randn(3, generator=generator).clamp(-2, 2) * 0.05 * side
    high = high + torch.randn(3, generator=generator).clamp(-2, 2) * 0.05 * side
    ranges = [
        slice(max(0, round(float(a))), max(round(float(a)) + 1, round(float(b))))
        for a, b in zip(low, high, strict=True)
    ]
    if flat is not None:
        ranges[flat] = slice(index, index + 1)
    region[tuple(ranges)] = True


def _lasso(generator: torch.Generator, target: torch.Tensor, region: torch.Tensor) -> None:
    """Mark a slice of the target, widened or not, across a random axis."""
    axis = int(torch.randint(3, (), generator=generator))
    where = target.nonzero()[:, axis]
    index = int(where[int(torch.randint(len(where), (), generator=generator))])
    selection = tuple(index if one == axis else slice(None) for one in range(3))
    flat = target[selection].numpy()
    grown = int(torch.randint(3, (), generator=generator))
    region[selection] = torch.from_numpy(ndimage.binary_dilation(flat, iterations=grown) if grown else flat)


def _scribble(generator: torch.Generator, target: torch.Tensor, marks: torch.Tensor) -> None:
    """Mark a line between two voxels of the target in one slice, where it is inside."""
    axis = int(torch.randint(3, (), generator=generator))
    where = target.nonzero()
    first = where[int(torch.randint(len(where), (), generator=generator))]
    same = where[where[:, axis] == first[axis]]
    last = same[int(torch.randint(len(same), (), generator=generator))]
    steps = torch.linspace(0, 1, 64).unsqueeze(1)
    line = (first + (last - first) * steps).round().long().unbind(1)
    marks[line] = target[line]
    marks[tuple(first)] = True


def _wrong(generator: torch.Generator, target: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Draw a mask with errors: shifted, grown, shrunk, cut, or leaked into another object."""
    kind = int(torch.randint(5, (), generator=generator))
    if kind == 0:
        shift = torch.randint(-6, 7, (3,), generator=generator).tolist()
        return torch.roll(target, shift, (0, 1, 2))
    if kind == 1:
        return _pooled(target, 7) > 0.05
    if kind == 2:
        return _pooled(target, 7) > 0.9
    if kind == 3:
        low, high = _extent(target)
        axis = int(torch.randint(3, (), generator=generator))
        middle = int(low[axis] + (high - low)[axis] * (0.25 + 0.5 * torch.rand((), generator=generator)))
        cut = target.clone()
        side = slice(0, middle) if torch.rand((), generator=generator) < 0.5 else slice(middle, None)
        cut[tuple(side if one == axis else slice(None) for one in range(3))] = False
        return cut
    return target | other
