"""Convert prompts in a volume to what a model of slices understands.

Voxels are indices of the array, in the order of its axes. The slices lie across its last axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from baps.blackbox import Capabilities
from baps.inference.propagation import deepest_point
from baps.inference.scribbles import MAX_NEGATIVE, MAX_POSITIVE, Box, choose_clicks
from baps.prompts import Point
from baps.prompts.volume_prompts import (
    Mask,
    Triple,
    VolumeBox,
    VolumePoint,
    VolumePrompt,
    VolumeRegion,
    fill_lasso,
    triple,
)


def slicing_axis(
    shape: Sequence[int], spacing: Sequence[float] | None, prompts: Sequence[VolumePrompt] = (), ratio: float = 1.25
) -> int:
    """Choose the axis across whose slices a model of slices segments a volume.

    This is the axis along which voxels are longest, because a scanner acquires slices across it and adapters are
    trained on those. If the voxels have no clearly longest side, it is the axis across which the newest flat prompt (a
    2D box, a scribble or a lasso) was drawn, because the user judges the object there. Without one, it is the only axis
    whose size differs from those of the other two, as in 512 x 512 x 90; else the first axis, which is where 3D Slicer
    and napari have the slices.

    Args:
        shape: size of the array along each axis.
        spacing: distance of voxels along each axis, or None if unknown.
        prompts: the prompts, the newest last.
        ratio: voxels are clearly longest along an axis if they are so many times as long as along each other axis.

    Returns:
        The axis, 0 to 2.
    """
    if spacing is not None:
        longest, second = sorted(range(3), key=lambda axis: -spacing[axis])[:2]
        if spacing[longest] >= ratio * spacing[second]:
            return longest
    for prompt in reversed(prompts):
        if prompt.flat_axis is not None:
            return prompt.flat_axis
    others = [[size for axis, size in enumerate(shape) if axis != one] for one in range(3)]
    odd = [axis for axis in range(3) if others[axis][0] == others[axis][1] != shape[axis]]
    return odd[0] if odd else 0


@dataclass
class SlicePrompts:
    """The prompts on one slice across the last axis. Masks are (rows, columns), points (X, Y) in pixels.

    Attributes:
        positive: clicks on the object.
        negative: clicks beside the object.
        box: (X0, Y0, X1, Y1), the first and last pixels of a box around the object, or None.
        strokes: pixels that were painted as the object, or None.
        erased: pixels that were marked as not the object, or None.
        lasso: pixels inside a lasso around the object, or None.
    """

    positive: list[Point] = field(default_factory=list)
    negative: list[Point] = field(default_factory=list)
    box: Box | None = None
    strokes: Mask | None = None
    erased: Mask | None = None
    lasso: Mask | None = None

    @property
    def adds(self) -> bool:
        """Whether something says where the object is."""
        return bool(self.positive) or self.box is not None or self.lasso is not None


@dataclass(frozen=True)
class Bounds:
    """The part of a volume that an object may reach.

    Attributes:
        low: first voxel along each axis.
        high: voxel after the last one along each axis.
    """

    low: Triple
    high: Triple

    def on_slice(self, shape: tuple[int, int]) -> Mask:
        """Mark what lies inside on a slice across the last axis.

        Args:
            shape: (rows, columns).

        Returns:
            The part of the slice inside, (rows, columns).
        """
        inside = np.zeros(shape, bool)
        inside[self.low[1] : self.high[1], self.low[0] : self.high[0]] = True
        return inside


def group_by_slice(
    prompts: Iterable[VolumePrompt], shape: Triple, capabilities: Capabilities
) -> tuple[Mapping[int, SlicePrompts], Bounds]:
    """Convert prompts to prompts on slices across the last axis.

    A prompt that was drawn across another axis becomes clicks on the slices that it crosses: a scribble up to three, a
    lasso or a box one in its middle. A box that spans several slices prompts its middle slice. Such a box or lasso
    bounds the object along the axes in which it extends.

    Args:
        prompts: the prompts; all their voxels lie in the volume.
        shape: size of the volume, (I, J, K).
        capabilities: what the black box understands.

    Returns:
        Prompts by slice, in order, and the part of the volume that the object may reach. The latter includes each
            click on the object.
    """
    groups: dict[int, SlicePrompts] = {}
    limits: list[tuple[Triple, Triple]] = []
    for prompt in prompts:
        if isinstance(prompt, VolumePoint):
            _add_click(groups, prompt.voxel, prompt.include)
        elif isinstance(prompt, VolumeBox):
            _add_box(groups, prompt, shape, capabilities, limits)
        else:
            _add_region(groups, prompt, shape, limits)
    low: Triple = (0, 0, 0)
    high = shape
    if limits:
        clicks = [(round(x), round(y), k) for k, one in groups.items() for x, y in one.positive]
        corners = [*limits, *((click, (click[0] + 1, click[1] + 1, click[2] + 1)) for click in clicks)]
        low = triple(min(corner[0][axis] for corner in corners) for axis in range(3))
        high = triple(max(corner[1][axis] for corner in corners) for axis in range(3))
    return dict(sorted(groups.items())), Bounds(low, high)


def _add_click(groups: dict[int, SlicePrompts], voxel: Triple, include: bool) -> None:
    group = groups.setdefault(voxel[2], SlicePrompts())
    (group.positive if include else group.negative).append((float(voxel[0]), float(voxel[1])))


def _add_box(
    groups: dict[int, SlicePrompts],
    box: VolumeBox,
    shape: Triple,
    capabilities: Capabilities,
    limits: list[tuple[Triple, Triple]],
) -> None:
    if not box.include:
        for k in range(box.low[2], box.high[2]):
            _paint(groups, k, "erased", shape, (slice(box.low[1], box.high[1]), slice(box.low[0], box.high[0])), True)
        return
    middle = triple((first + end - 1) // 2 for first, end in zip(box.low, box.high, strict=True))
    sides = np.subtract(box.high, box.low)
    if min(sides[:2]) == 1 or not capabilities.boxes:
        _add_click(groups, middle, True)
    else:
        edges = (box.low[0], box.low[1], box.high[0] - 1, box.high[1] - 1)
        groups.setdefault(middle[2], SlicePrompts()).box = (
            float(edges[0]), float(edges[1]), float(edges[2]), float(edges[3])
        )  # fmt: skip
    if sides[2] > 1:
        limits.append(_limits(box.low, box.high, shape))


def _add_region(
    groups: dict[int, SlicePrompts], region: VolumeRegion, shape: Triple, limits: list[tuple[Triple, Triple]]
) -> None:
    painted, across = region.unpack(), region.flat_axis
    if region.lasso:
        painted = fill_lasso(painted, 2 if across is None else across)
    i, j, first = region.low
    rows, columns = slice(j, j + region.shape[1]), slice(i, i + region.shape[0])
    kind = "erased" if not region.include else "lasso" if region.lasso else "strokes"
    crosses = across in (0, 1)
    if not (region.lasso and region.include and crosses):
        for k in np.flatnonzero(painted.any((0, 1))).tolist():
            part = painted[:, :, k].T
            _paint(groups, first + k, kind, shape, (rows, columns), part)
            if not region.lasso and not crosses:
                for x, y in choose_clicks(part, MAX_POSITIVE if region.include else MAX_NEGATIVE):
                    _add_click(groups, (i + round(x), j + round(y), first + k), region.include)
    if not crosses:
        return
    assert across is not None
    flat: Mask = np.moveaxis(painted, across, 0)[
        0
    ]  # (the other axis, K): points of its transpose are (the other axis, K).
    if region.lasso and region.include:
        points: Sequence[Point] = [deepest_point(flat.T)]
        end = triple(np.add(region.low, region.shape))
        limits.append(_limits(region.low, end, shape))
    elif region.lasso:
        points = []
    else:
        points = choose_clicks(flat.T, MAX_POSITIVE if region.include else MAX_NEGATIVE)
    for along, k in points:
        inside = (0, round(along), round(k)) if across == 0 else (round(along), 0, round(k))
        _add_click(groups, triple(np.add(region.low, inside)), region.include)


def _paint(
    groups: dict[int, SlicePrompts], k: int, kind: str, shape: Triple, where: tuple[slice, slice], part: Mask | bool
) -> None:
    """Mark pixels of a slice in one of the masks of its prompts."""
    group = groups.setdefault(k, SlicePrompts())
    mask = getattr(group, kind)
    if mask is None:
        mask = np.zeros((shape[1], shape[0]), bool)
        setattr(group, kind, mask)
    mask[where] |= part


def _limits(low: Triple, high: Triple, shape: Triple) -> tuple[Triple, Triple]:
    """Return how far an object in a box may reach; along an axis in which the box is flat, everywhere."""
    flat = [end - first == 1 for first, end in zip(low, high, strict=True)]
    return (
        triple(0 if thin else first for first, thin in zip(low, flat, strict=True)),
        triple(size if thin else end for size, end, thin in zip(shape, high, flat, strict=True)),
    )
