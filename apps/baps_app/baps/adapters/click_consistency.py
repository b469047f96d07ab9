"""Clicks are heeded: an adapted answer that contradicts them gives way to one that does not.

What is put around a model was learned on a site's patients. On an image of another kind it can hide from the model what
a correction points at, and then further clicks change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from baps.adapters.adapter import Adapter
from baps.prompts import Point, Prompt

_NEAR = 1 / 48
"""Of the image's side: a click is heeded by an answer that is right so near to it, for borders differ by a little."""


def contradicted(probability: NDArray[np.float32], prompt: Prompt) -> int:
    """How many clicks of a prompt an answer (H, W) contradicts, and all around them."""
    near, last = _NEAR * max(probability.shape), np.array(probability.shape[::-1]) - 1
    inside = probability > 0.5

    def wrong(region: NDArray[np.bool_], clicks: Sequence[Point]) -> int:
        """How many clicks lie far from a region."""
        rows, columns = np.nonzero(region)
        pixels = [np.clip((round(x), round(y)), 0, last) for x, y in clicks]
        return sum(not (np.hypot(columns - x, rows - y) <= near).any() for x, y in pixels)

    return wrong(inside, prompt.positive) + wrong(~inside, prompt.negative)


def fall_back_on_violated_clicks(
    answer: NDArray[np.float32],
    adapter: Adapter | None,
    prompt: Prompt,
    ask: Callable[[Adapter | None], NDArray[np.float32]],
) -> tuple[NDArray[np.float32], Adapter | None]:
    """The adapted answer, or, where it contradicts a correction, one through less of the adapter.

    The answer to a first click or box stays: it is what the adapter was checked by.

    Args:
        answer: probability (H, W) through the adapter.
        adapter: that serves, or None.
        prompt: clicks in pixels of the answer.
        ask: gives the probability through another adapter, or None for the model as it is.

    Returns:
        The answer, and what it was given through.
    """
    used = adapter
    corrected = len(prompt.positive) + len(prompt.negative) + (prompt.box is not None) > 1
    if adapter is None or not corrected:
        return answer, used
    wrong = contradicted(answer, prompt)
    for less in adapter.less():
        if not wrong:
            break
        other = ask(less)
        if (found := contradicted(other, prompt)) < wrong:
            answer, wrong, used = other, found, less
    return answer, used
