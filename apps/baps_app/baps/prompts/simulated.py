"""Draw clicks and boxes from the true mask as a user might give them, for training and evaluation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from baps.errors import InputError
from baps.prompts import Point, Prompt

PROMPTS = ("click", "box")
"""Kinds of prompt that ``draw_prompt`` knows."""

MAX_CLICKS = 10
"""Maximum number of clicks per mask."""

_SHIFT = 0.3
"""Standard deviation of the shift of an invented mask along each axis, relative to the size of the object."""


def check_prompts(kind: str, seed: int = 0, clicks: int = 1) -> None:
    """Check the settings of simulated prompts.

    Args:
        kind: kind of prompt, one of ``PROMPTS``.
        seed: seed of the random generator.
        clicks: number of clicks per mask.

    Raises:
        InputError: if one of them is unknown or out of range.
    """
    if kind not in PROMPTS:
        raise InputError(f"There is no prompt named {kind!r}. Known ones: {', '.join(PROMPTS)}.")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed must be a whole number from 0 on, below 2^63, not {seed}.")
    if not 1 <= clicks <= MAX_CLICKS:
        raise InputError(f"clicks must be a whole number from 1 to {MAX_CLICKS}, not {clicks}.")


def other_kind(kind: str, clicks: bool, boxes: bool) -> str:
    """Return the other kind of prompt, or the same one if a model does not understand the other.

    Args:
        kind: kind of prompt, one of ``PROMPTS``.
        clicks: whether the model understands clicks.
        boxes: whether it understands boxes.

    Returns:
        One of ``PROMPTS``.
    """
    understood = (name for name, known in zip(PROMPTS, (clicks, boxes), strict=True) if known)
    return next((name for name in understood if name != kind), kind)


def draw_prompt(target: NDArray[np.bool_], kind: str, random: np.random.Generator) -> Prompt:
    """Draw one prompt for an object.

    Args:
        target: mask of the object, (H, W); not empty.
        kind: ``click`` for a click well inside the largest piece (at least half as deep as its deepest pixel), or
            ``box`` for a box around all pieces, each edge off by a normal error of 5 % of the side.
        random: random generator.

    Returns:
        The prompt, in pixels of the mask.

    Raises:
        InputError: if the mask is empty or the kind is unknown.
    """
    check_prompts(kind)
    if not target.any():
        raise InputError("A prompt cannot be drawn for an empty mask.")
    if kind == "click":
        piece, _ = _largest_piece(target, target)
        return Prompt(positive=(_well_inside(piece, target, random),))
    rows, columns = np.nonzero(target)
    edges = np.array([columns.min(), rows.min(), columns.max(), rows.max()], float)
    sides = np.tile(edges[2:] - edges[:2] + 1, 2)
    edges += np.clip(random.normal(size=4), -2, 2) * 0.05 * sides
    limits = np.tile(np.array(target.shape[::-1], float) - 1, 2)
    x0, y0, x1, y1 = np.clip(edges, 0, limits)
    return Prompt(box=(float(x0), float(y0), float(max(x0, x1)), float(max(y0, y1))))


def draw_correction(
    prompt: Prompt, mask: NDArray[np.bool_], target: NDArray[np.bool_], random: np.random.Generator
) -> Prompt | None:
    """Add one click where the mask is most wrong.

    The click is a positive one in the largest missed piece, or a negative one in the largest false piece, whichever
    piece is larger. It lies as deep inside as a click of ``draw_prompt``. Pixels that were clicked before do not count
    towards a size and are not clicked again.

    Args:
        prompt: prompt that the mask was predicted for, (X, Y) in pixels of the image, with all clicks inside the image.
        mask: predicted mask, (H, W).
        target: mask of the object, (H, W).
        random: random generator.

    Returns:
        The longer prompt, or None if no click is needed or possible: the masks are equal, or every pixel in which they
        differ was clicked.
    """
    free = np.ones_like(target)
    for x, y in prompt.positive + prompt.negative:
        free[round(y), round(x)] = False
    missed, missed_size = _largest_piece(target & ~mask, free)
    false, false_size = _largest_piece(mask & ~target, free)
    if not missed_size and not false_size:
        return None
    if missed_size >= false_size:
        return replace(prompt, positive=(*prompt.positive, _well_inside(missed, free, random)))
    return replace(prompt, negative=(*prompt.negative, _well_inside(false, free, random)))


def draw_corrected_prompt(target: NDArray[np.bool_], kind: str, random: np.random.Generator) -> Prompt:
    """Draw a prompt with one to three corrections of invented masks, which are the object in a shifted position.

    This needs no black box, so prompts can be drawn before any query.

    Args:
        target: mask of the object, (H, W); not empty.
        kind: kind of the first prompt, one of ``PROMPTS``.
        random: random generator.

    Returns:
        The prompt, in pixels of the mask.
    """
    prompt = draw_prompt(target, kind, random)
    object_pixels = np.argwhere(target)
    sides = np.ptp(object_pixels, axis=0) + 1
    for _ in range(random.integers(1, 4)):
        shifted = object_pixels + (_SHIFT * sides * random.normal(size=2)).round().astype(int)
        inside = ((shifted >= 0) & (shifted < target.shape)).all(axis=1)
        invented = np.zeros_like(target)
        invented[tuple(shifted[inside].T)] = True
        prompt = draw_correction(prompt, invented, target, random) or prompt
    return prompt


def _largest_piece(region: NDArray[np.bool_], free: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], int]:
    """Return the connected piece of a region (H, W) with the most free pixels, and their number."""
    pieces, _ = ndimage.label(region)
    sizes = np.bincount(pieces[free], minlength=2)[1:]
    return pieces == 1 + np.argmax(sizes), int(sizes.max())


def _well_inside(piece: NDArray[np.bool_], free: NDArray[np.bool_], random: np.random.Generator) -> Point:
    """Draw a free pixel (X, Y) of a piece (H, W), at least half as deep inside as its deepest free pixel."""
    ((box_rows, box_columns),) = ndimage.find_objects(
        piece.astype(np.uint8)
    )  # Pixels outside the box do not change a depth.
    depth = ndimage.distance_transform_edt(np.pad(piece[box_rows, box_columns], 1))[1:-1, 1:-1]
    depth *= free[box_rows, box_columns]
    rows, columns = np.nonzero(depth >= depth.max() / 2)
    pick = random.integers(len(rows))
    return float(box_columns.start + columns[pick]), float(box_rows.start + rows[pick])
