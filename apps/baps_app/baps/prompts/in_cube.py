"""Convert prompts in a volume to prompts in a cube of it, and to marked voxels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from baps.imaging.cube import Cube
from baps.prompts.volume_prompts import (
    Mask,
    VolumeBox,
    VolumePoint,
    VolumePrompt,
    VolumeRegion,
    bounding_box,
    fill_lasso,
    triple,
)


def move_to_cube(prompt: VolumePrompt, cube: Cube) -> VolumePrompt | None:
    """Convert a prompt to voxels of a cube.

    Args:
        prompt: the prompt, in voxels of the volume.
        cube: the cube.

    Returns:
        The prompt in voxels of the cube, without what lies outside of it; None if nothing of it lies inside.
    """
    if isinstance(prompt, VolumePoint):
        (voxel,) = np.round(cube.positions(np.array([prompt.voxel]))).astype(int)
        inside = ((voxel >= 0) & (voxel < cube.side)).all()
        return VolumePoint(triple(voxel), prompt.include) if inside else None
    if isinstance(prompt, VolumeBox):
        low, high = np.round(cube.positions(np.array([prompt.low, prompt.high]) - 0.5) + 0.5).astype(int)
        high = np.maximum(high, low + 1)  # A box in one slice remains in one slice.
        low, high = low.clip(0, cube.side), high.clip(0, cube.side)
        return VolumeBox(triple(low), triple(high), prompt.include) if (high > low).all() else None
    painted = _paint_region(prompt, cube)
    return VolumeRegion.of(painted, (0, 0, 0), prompt.lasso, prompt.include) if painted.any() else None


def paint_in_cube(cube: Cube, prompts: Iterable[VolumePrompt]) -> NDArray[np.float32]:
    """Mark in a cube what prompts mark in the volume; boxes and lassos are filled.

    Args:
        cube: the cube.
        prompts: the prompts, in voxels of the volume.

    Returns:
        0 or 1, (S, S, S).
    """
    marked = np.zeros((cube.side,) * 3, np.float32)
    for prompt in prompts:
        moved = move_to_cube(prompt, cube)
        if isinstance(moved, VolumePoint):
            marked[moved.voxel] = 1
        elif isinstance(moved, VolumeBox):
            marked[tuple(slice(low, high) for low, high in zip(moved.low, moved.high, strict=True))] = 1
        elif isinstance(moved, VolumeRegion):
            marked[moved.part] = np.maximum(marked[moved.part], moved.unpack())
    return marked


def paint_marks(
    cube: Cube, prompts: Sequence[VolumePrompt]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Mark in a cube what prompts mark in the volume, by what they mean.

    Args:
        cube: the cube.
        prompts: the prompts, in voxels of the volume.

    Returns:
        0 or 1, (S, S, S) each: what clicks and scribbles mark as the object; what any prompt marks as not the object;
            the inside of boxes and lassos around the object.
    """
    groups = (
        [one for one in prompts if one.include and not is_around(one)],
        [one for one in prompts if not one.include],
        [one for one in prompts if one.include and is_around(one)],
    )
    positive, negative, region = (paint_in_cube(cube, group) for group in groups)
    return positive, negative, region


def is_around(prompt: VolumePrompt) -> bool:
    """Return whether a prompt is drawn around something: a box or a lasso.

    Args:
        prompt: the prompt.

    Returns:
        Whether it is.
    """
    return isinstance(prompt, VolumeBox) or (isinstance(prompt, VolumeRegion) and prompt.lasso)


def marked_extent(
    prompts: Sequence[VolumePrompt], mask: Mask | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Find the first and the last voxel of all that is marked as the object.

    Args:
        prompts: the prompts, at least one of which marks the object unless there is a mask.
        mask: a mask of the object, (I, J, K), or None.

    Returns:
        Their indices along each axis, (3,) each.
    """
    low: list[Sequence[int]] = []
    end: list[Sequence[int]] = []
    for prompt in prompts:
        if prompt.include:
            low.append(prompt.voxel if isinstance(prompt, VolumePoint) else prompt.low)
            end.append(_end(prompt))
    box = bounding_box(mask) if mask is not None else None
    if box:
        low.append([one.start for one in box])
        end.append([one.stop for one in box])
    return np.min(np.array(low, float), 0), np.max(np.array(end, float), 0) - 1


def _end(prompt: VolumePrompt) -> tuple[int, ...]:
    """Return the voxel after the last one along each axis."""
    if isinstance(prompt, VolumePoint):
        return tuple(one + 1 for one in prompt.voxel)
    if isinstance(prompt, VolumeBox):
        return prompt.high
    return tuple(first + size for first, size in zip(prompt.low, prompt.shape, strict=True))


def _paint_region(region: VolumeRegion, cube: Cube) -> Mask:
    """Mark a scribble or lasso, whose voxels may be smaller or larger than those of the cube, (S, S, S)."""
    painted = region.unpack()
    if region.lasso:
        painted = fill_lasso(painted, 2 if region.flat_axis is None else region.flat_axis)
    marked = np.zeros((cube.side,) * 3, bool)
    # Each painted voxel marks the nearest one of the cube, and each voxel of the cube reads the nearest painted one.
    nearest = np.round(cube.positions(np.argwhere(painted) + np.array(region.low))).astype(int)
    marked[tuple(nearest[((nearest >= 0) & (nearest < cube.side)).all(1)].T)] = True
    index = [
        np.round(first + step * np.arange(cube.side)).astype(int) - low
        for first, step, low in zip(cube.first, cube.step, region.low, strict=True)
    ]
    valid = [np.flatnonzero((one >= 0) & (one < size)) for one, size in zip(index, region.shape, strict=True)]
    sampled = painted[np.ix_(*(one[where] for one, where in zip(index, valid, strict=True)))]
    marked[np.ix_(*valid)] |= sampled
    return marked
