"""Draw clicks and boxes in a volume from the true mask as a user might give them, for training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from baps.errors import InputError
from baps.prompts.simulated import check_prompts
from baps.prompts.volume_prompts import Mask, VolumeBox, VolumePoint, VolumePrompt, bounding_box, triple


def draw_volume_prompts(
    target: Mask, spacing: Sequence[float], kind: str, count: int, random: np.random.Generator
) -> list[VolumePrompt]:
    """Draw several first prompts for an object.

    Args:
        target: mask of the object, (I, J, K); not empty.
        spacing: distance of voxels along each axis, mm.
        kind: ``click`` for a click well inside the largest piece (at least half as deep as its deepest voxel), or
            ``box`` for a 3D box around all pieces, each side off by a normal error of 5 % of its length.
        count: number of prompts.
        random: random generator.

    Returns:
        The prompts, in voxels of the mask.

    Raises:
        InputError: if the mask is empty or the kind is unknown.
    """
    check_prompts(kind)
    where = bounding_box(target)
    if where is None:
        raise InputError("A prompt cannot be drawn for an empty mask.")
    if kind == "click":
        voxels = _deep_voxels(_largest_piece(target[where]), spacing) + [one.start for one in where]
        return [VolumePoint(triple(one), True) for one in voxels[random.integers(len(voxels), size=count)]]
    low = np.array([one.start for one in where], float)
    high = np.array([one.stop for one in where], float)
    boxes: list[VolumePrompt] = []
    for _ in range(count):
        errors = np.clip(random.normal(size=(2, 3)), -2, 2) * 0.05 * (high - low)
        first = np.round(low + errors[0]).clip(0, np.array(target.shape) - 1).astype(int)
        end = np.maximum(np.round(high + errors[1]).clip(1, target.shape).astype(int), first + 1)
        boxes.append(VolumeBox(triple(first), triple(end), True))
    return boxes


def draw_volume_correction(
    mask: Mask, target: Mask, spacing: Sequence[float], random: np.random.Generator
) -> VolumePoint | None:
    """Draw a click where a mask is most wrong: in its largest missed or false piece, well inside.

    Args:
        mask: predicted mask, (I, J, K).
        target: mask of the object, (I, J, K).
        spacing: distance of voxels along each axis, mm.
        random: random generator.

    Returns:
        The click, or None if the masks are equal.
    """
    where = bounding_box(mask != target)
    if where is None:
        return None
    wrong = [_largest_piece(one) for one in (target[where] & ~mask[where], mask[where] & ~target[where])]
    missed = wrong[0].sum() >= wrong[1].sum()
    voxels = _deep_voxels(wrong[0] if missed else wrong[1], spacing)
    voxel = voxels[random.integers(len(voxels))] + [one.start for one in where]
    return VolumePoint(triple(voxel), bool(missed))


def _largest_piece(region: Mask) -> Mask:
    """Return the connected piece with the most voxels; nothing if the region is empty."""
    pieces, count = ndimage.label(region)
    if not count:
        return region
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    piece: Mask = pieces == sizes.argmax()
    return piece


def _deep_voxels(piece: Mask, spacing: Sequence[float]) -> NDArray[np.int64]:
    """Return the voxels at least half as deep in a piece as its deepest one, (N, 3)."""
    depth = ndimage.distance_transform_edt(np.pad(piece, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    return np.argwhere(depth >= depth.max() / 2)
