"""Convert scribbles, the strokes that a user paints, to a prompt: a few clicks along the strokes.

The number of clicks and their placement were chosen on strokes drawn by people, see
``benchmarks/interactive/scribbles.py``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from baps.blackbox import Capabilities
from baps.errors import InputError
from baps.prompts import Point, Prompt

MAX_POSITIVE, MAX_NEGATIVE = 3, 2
"""Maximum number of clicks that the strokes of a slice become, on the organ and beside it. More clicks worsen the mask.
"""

_ITERATIONS = 10
"""Iterations of k-means."""

Box = tuple[float, float, float, float]


def strokes_to_prompt(
    foreground: NDArray[np.bool_], background: NDArray[np.bool_], capabilities: Capabilities, box: Box | None = None
) -> Prompt:
    """Convert the strokes of one slice to a prompt.

    Args:
        foreground: strokes on the organ, (rows, columns).
        background: strokes beside the organ, (rows, columns); may be empty.
        capabilities: what the black box understands.
        box: box around the organ, (X0, Y0, X1, Y1) in pixels, or None.

    Returns:
        Clicks, (X, Y) in pixels of the slice. A black box that understands boxes only gets ``box``, or else the
            bounding box of the foreground strokes. Other black boxes get no box, because an inexact box gives a worse
            mask than none.

    Raises:
        InputError: if there is no foreground stroke, or the two masks differ in shape.
    """
    if foreground.shape != background.shape:
        raise InputError(
            f"Strokes of one slice must have one shape, not {foreground.shape} and {background.shape}. Give masks of "
            "the same slice."
        )
    if not foreground.any():
        raise InputError("There is no foreground stroke. Paint over the organ on the slice.")
    if capabilities.clicks:
        return Prompt(choose_clicks(foreground, MAX_POSITIVE), choose_clicks(background, MAX_NEGATIVE))
    rows, columns = np.nonzero(foreground)
    return Prompt(box=box or (float(columns.min()), float(rows.min()), float(columns.max()), float(rows.max())))


def choose_clicks(strokes: NDArray[np.bool_], max_clicks: int) -> tuple[Point, ...]:
    """Choose clicks in the middle of about equal parts of the strokes, which are separated by k-means.

    Args:
        strokes: (rows, columns).
        max_clicks: maximum number of clicks; strokes of fewer pixels give as many clicks as they have pixels.

    Returns:
        (X, Y) in pixels, each on a stroke, without repetition. The same strokes always give the same clicks.
    """
    pixels = np.argwhere(strokes).astype(float)
    if max_clicks < 1 or not len(pixels):
        return ()
    centres = _farthest_points(strokes, pixels, max_clicks)
    for _ in range(_ITERATIONS):
        nearest = _distances(pixels, centres).argmin(axis=1)
        centres = np.array([pixels[nearest == part].mean(axis=0) for part in np.unique(nearest)])
    clicks = pixels[_distances(pixels, centres).argmin(axis=0)]
    return tuple(dict.fromkeys((column, row) for row, column in clicks.tolist()))


def _farthest_points(strokes: NDArray[np.bool_], pixels: NDArray[np.float64], max_clicks: int) -> NDArray[np.float64]:
    """Choose the pixel deepest inside the strokes, then repeatedly the pixel farthest from all chosen ones."""
    (around,) = ndimage.find_objects(strokes.astype(np.uint8))  # Pixels outside do not change the depth.
    depth = ndimage.distance_transform_edt(np.pad(strokes[around], 1))[1:-1, 1:-1][strokes[around]]
    chosen = pixels[[depth.argmax()]]
    while len(chosen) < min(max_clicks, len(pixels)):
        farthest = _distances(pixels, chosen).min(axis=1).argmax()
        chosen = np.concatenate([chosen, pixels[[farthest]]])
    return chosen


def _distances(pixels: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the distance from each pixel to each centre, (pixels, centres)."""
    distances: NDArray[np.float64] = np.linalg.norm(pixels[:, None] - centres, axis=-1)
    return distances


def keep_strokes(
    mask: NDArray[np.bool_], foreground: NDArray[np.bool_], background: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Apply the strokes to a mask: foreground strokes are added to it, background strokes are removed from it.

    Args:
        mask: the answer of the black box, (rows, columns).
        foreground: strokes on the organ, (rows, columns).
        background: strokes beside the organ, (rows, columns).

    Returns:
        The mask with the strokes, (rows, columns).
    """
    return (mask | foreground) & ~background
