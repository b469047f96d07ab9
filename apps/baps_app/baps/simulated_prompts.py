"""Clicks and boxes as a person might give them, drawn from the true mask, for training and evaluation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .blackbox import Prompt
from .errors import InputError

PROMPTS = ("click", "box")
"""Kinds of prompt that ``draw_prompt`` knows."""


def draw_prompt(truth: NDArray[np.bool_], kind: str, random: np.random.Generator) -> Prompt:
    """One prompt for the object.

    Args:
        truth: the object on the image, (H, W); not empty.
        kind: ``click``, somewhere well inside the largest piece (at least half as deep as its deepest pixel), or
            ``box``, around all of it with each edge off by a normal error of 5 % of the side.
        random: the source of randomness.
    """
    if not truth.any():
        raise InputError("A prompt cannot be drawn for an empty mask.")
    if kind == "click":
        pieces, count = ndimage.label(truth)
        if count > 1:
            truth = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
        depth = ndimage.distance_transform_edt(np.pad(truth, 1))[1:-1, 1:-1]
        rows, columns = np.nonzero(depth >= depth.max() / 2)
        pick = random.integers(len(rows))
        return Prompt(positive=((float(columns[pick]), float(rows[pick])),))
    if kind == "box":
        rows, columns = np.nonzero(truth)
        edges = np.array([columns.min(), rows.min(), columns.max(), rows.max()], float)
        sides = np.tile(edges[2:] - edges[:2] + 1, 2)
        edges += np.clip(random.normal(size=4), -2, 2) * 0.05 * sides
        limits = np.tile(np.array(truth.shape[::-1], float) - 1, 2)
        x0, y0, x1, y1 = np.clip(edges, 0, limits)
        return Prompt(box=(float(x0), float(y0), float(max(x0, x1)), float(max(y0, y1))))
    raise InputError(f"There is no kind of prompt named {kind!r}. Known ones: {', '.join(PROMPTS)}.")
