"""Scribbles as a prompt: a few clicks along the strokes.

How many, and chosen how, was measured on strokes that people drew: ``benchmarks/interactive/scribbles.py``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from baps.blackbox import Capabilities
from baps.errors import InputError
from baps.prompts import Point, Prompt

POSITIVE, NEGATIVE = 3, 2
"""Clicks at the most that the strokes of a slice become, on the organ and beside it. Many spoil the mask."""

_ROUNDS = 10
"""Of k-means."""

Box = tuple[float, float, float, float]


def strokes_to_prompt(
    foreground: NDArray[np.bool_], background: NDArray[np.bool_], able: Capabilities, box: Box | None = None
) -> Prompt:
    """What strokes on one slice say.

    Args:
        foreground: strokes on the organ, (rows, columns).
        background: strokes beside it, (rows, columns); may be empty.
        able: what the black box understands.
        box: that was drawn around the organ, (X0, Y0, X1, Y1) in pixels, or None.

    Returns:
        Clicks, (X, Y) in pixels of the slice. For a black box that understands boxes only, the box, or else the one
        around the foreground strokes; others get none, for a box that is a little off says worse than none.

    Raises:
        InputError: if there is no foreground stroke, or the two are not of one shape.
    """
    if foreground.shape != background.shape:
        raise InputError(
            f"Strokes of one slice must have one shape, not {foreground.shape} and {background.shape}. Give masks of "
            "the same slice."
        )
    if not foreground.any():
        raise InputError("There is no foreground stroke. Paint over the organ on the slice.")
    if able.clicks:
        return Prompt(choose_clicks(foreground, POSITIVE), choose_clicks(background, NEGATIVE))
    rows, columns = np.nonzero(foreground)
    return Prompt(box=box or (float(columns.min()), float(rows.min()), float(columns.max()), float(rows.max())))


def choose_clicks(strokes: NDArray[np.bool_], most: int) -> tuple[Point, ...]:
    """Clicks in the middle of about equal parts of strokes, which k-means tells apart.

    Args:
        strokes: (rows, columns).
        most: clicks, at the most; strokes of fewer pixels give as many as they have.

    Returns:
        (X, Y) in pixels, each on a stroke, none twice; always the same for the same strokes.
    """
    pixels = np.argwhere(strokes).astype(float)
    if most < 1 or not len(pixels):
        return ()
    centres = _spread(strokes, pixels, most)
    for _ in range(_ROUNDS):
        nearest = _distances(pixels, centres).argmin(axis=1)
        centres = np.array([pixels[nearest == part].mean(axis=0) for part in np.unique(nearest)])
    clicks = pixels[_distances(pixels, centres).argmin(axis=0)]
    return tuple(dict.fromkeys((column, row) for row, column in clicks.tolist()))


def _spread(strokes: NDArray[np.bool_], pixels: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """The pixel deepest inside the strokes, then again and again the one farthest from all chosen."""
    (around,) = ndimage.find_objects(strokes.astype(np.uint8))  # Nothing outside changes a depth.
    depth = ndimage.distance_transform_edt(np.pad(strokes[around], 1))[1:-1, 1:-1][strokes[around]]
    chosen = pixels[[depth.argmax()]]
    while len(chosen) < min(most, len(pixels)):
        farthest = _distances(pixels, chosen).min(axis=1).argmax()
        chosen = np.concatenate([chosen, pixels[[farthest]]])
    return chosen


def _distances(pixels: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """From each pixel to each centre, (pixels, centres)."""
    distances: NDArray[np.float64] = np.linalg.norm(pixels[:, None] - centres, axis=-1)
    return distances


def keep_strokes(
    mask: NDArray[np.bool_], foreground: NDArray[np.bool_], background: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """An answer with what was painted: strokes on the organ belong to it, strokes beside it do not; (rows, columns)."""
    return (mask | foreground) & ~background
