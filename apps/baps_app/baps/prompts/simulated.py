"""Clicks and boxes as a person might give them, drawn from the true mask, for training and evaluation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from baps.errors import InputError
from baps.prompts import Point, Prompt

PROMPTS = ("click", "box")
"""Kinds of prompt that ``draw_prompt`` knows."""

MOST_CLICKS = 10
"""After so many nobody goes on correcting a mask."""

_BESIDE = 0.3
"""How far off a made-up answer is, in sides of the object: the standard deviation along each axis."""


def check_prompts(kind: str, seed: int = 0, clicks: int = 1) -> None:
    """Refuse a kind of prompt, a seed or a number of clicks on a slice that prompts cannot be drawn with.

    Raises:
        InputError: if one of them is unknown or out of range.
    """
    if kind not in PROMPTS:
        raise InputError(f"There is no prompt named {kind!r}. Known ones: {', '.join(PROMPTS)}.")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed must be a whole number from 0 on, below 2^63, not {seed}.")
    if not 1 <= clicks <= MOST_CLICKS:
        raise InputError(f"clicks must be a whole number from 1 to {MOST_CLICKS}, not {clicks}.")


def draw_prompt(truth: NDArray[np.bool_], kind: str, random: np.random.Generator) -> Prompt:
    """One prompt for the object.

    Args:
        truth: the object on the image, (H, W); not empty.
        kind: ``click``, somewhere well inside the largest piece (at least half as deep as its deepest pixel), or
            ``box``, around all of it with each edge off by a normal error of 5 % of the side.
        random: the source of randomness.
    """
    check_prompts(kind)
    if not truth.any():
        raise InputError("A prompt cannot be drawn for an empty mask.")
    if kind == "click":
        piece, _ = _largest_piece(truth, truth)
        return Prompt(positive=(_well_inside(piece, truth, random),))
    rows, columns = np.nonzero(truth)
    edges = np.array([columns.min(), rows.min(), columns.max(), rows.max()], float)
    sides = np.tile(edges[2:] - edges[:2] + 1, 2)
    edges += np.clip(random.normal(size=4), -2, 2) * 0.05 * sides
    limits = np.tile(np.array(truth.shape[::-1], float) - 1, 2)
    x0, y0, x1, y1 = np.clip(edges, 0, limits)
    return Prompt(box=(float(x0), float(y0), float(max(x0, x1)), float(max(y0, y1))))


def draw_correction(
    prompt: Prompt, mask: NDArray[np.bool_], truth: NDArray[np.bool_], random: np.random.Generator
) -> Prompt | None:
    """The prompt with one more click, where the mask is most wrong.

    A foreground click in the largest piece that was missed, or a background click in the largest piece that is no part
    of the object, whichever is larger; as deep inside it as a click of ``draw_prompt``. A pixel that was clicked
    before counts for no size and is not clicked again.

    Args:
        prompt: that the mask was given for, clicks in (X, Y), pixels of the image, and all on it.
        mask: what was answered, (H, W).
        truth: the object on the image, (H, W).
        random: the source of randomness.

    Returns:
        The longer prompt, or None where no click is needed or left: the mask is the truth, or every pixel on which
        they differ was clicked.
    """
    free = np.ones_like(truth)
    for x, y in prompt.positive + prompt.negative:
        free[round(y), round(x)] = False
    missed, missed_size = _largest_piece(truth & ~mask, free)
    false, false_size = _largest_piece(mask & ~truth, free)
    if not missed_size and not false_size:
        return None
    if missed_size >= false_size:
        return replace(prompt, positive=(*prompt.positive, _well_inside(missed, free, random)))
    return replace(prompt, negative=(*prompt.negative, _well_inside(false, free, random)))


def draw_corrected(truth: NDArray[np.bool_], kind: str, random: np.random.Generator) -> Prompt:
    """A prompt with one to three corrections of answers that somebody made up: the object, beside its place.

    It needs no black box, so that it can be drawn before anything is asked.

    Args:
        truth, kind, random: as for ``draw_prompt``.
    """
    prompt = draw_prompt(truth, kind, random)
    object_pixels = np.argwhere(truth)
    sides = np.ptp(object_pixels, axis=0) + 1
    for _ in range(random.integers(1, 4)):
        moved = object_pixels + (_BESIDE * sides * random.normal(size=2)).round().astype(int)
        inside = ((moved >= 0) & (moved < truth.shape)).all(axis=1)
        beside = np.zeros_like(truth)
        beside[tuple(moved[inside].T)] = True
        prompt = draw_correction(prompt, beside, truth, random) or prompt
    return prompt


def _largest_piece(region: NDArray[np.bool_], free: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], int]:
    """The connected piece of a region (H, W) with the most free pixels, and how many those are."""
    pieces, _ = ndimage.label(region)
    sizes = np.bincount(pieces[free], minlength=2)[1:]
    return pieces == 1 + np.argmax(sizes), int(sizes.max())


def _well_inside(piece: NDArray[np.bool_], free: NDArray[np.bool_], random: np.random.Generator) -> Point:
    """A free pixel (X, Y) of a piece (H, W), at least half as deep in it as its deepest free pixel."""
    ((box_rows, box_columns),) = ndimage.find_objects(piece.astype(np.uint8))  # Nothing outside changes a depth.
    depth = ndimage.distance_transform_edt(np.pad(piece[box_rows, box_columns], 1))[1:-1, 1:-1]
    depth *= free[box_rows, box_columns]
    rows, columns = np.nonzero(depth >= depth.max() / 2)
    pick = random.integers(len(rows))
    return float(box_columns.start + columns[pick]), float(box_rows.start + rows[pick])
