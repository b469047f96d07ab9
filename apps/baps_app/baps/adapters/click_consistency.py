"""Fall back to a less adapted mask when clicks are violated.

An adapter is trained on a site's patients. On an image of another kind it may hide from the model what a correction
points at; then more clicks would change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from baps.adapters.adapter import Adapter
from baps.prompts import Point, Prompt

_TOLERANCE = 1 / 48
"""A click is violated if the mask is wrong everywhere within this distance, as a share of the image's width."""


def count_violated(probability: NDArray[np.float32], prompt: Prompt) -> int:
    """Count the clicks of a prompt that a mask violates.

    Args:
        probability: the mask as probabilities, (H, W).
        prompt: the prompt, in pixels of the mask.

    Returns:
        The number of clicks whose whole neighbourhood is on the wrong side of the mask's border.
    """
    tolerance, last = _TOLERANCE * max(probability.shape), np.array(probability.shape[::-1]) - 1
    inside = probability > 0.5

    def _violated(region: NDArray[np.bool_], clicks: Sequence[Point]) -> int:
        """Count the clicks that are far from a region."""
        rows, columns = np.nonzero(region)
        pixels = [np.clip((round(x), round(y)), 0, last) for x, y in clicks]
        return sum(not (np.hypot(columns - x, rows - y) <= tolerance).any() for x, y in pixels)

    return _violated(inside, prompt.positive) + _violated(~inside, prompt.negative)


def fall_back_on_violated_clicks(
    mask: NDArray[np.float32],
    adapter: Adapter | None,
    prompt: Prompt,
    predict: Callable[[Adapter | None], NDArray[np.float32]],
) -> tuple[NDArray[np.float32], Adapter | None]:
    """Replace an adapted mask by a less adapted one if it violates more clicks.

    The mask for a first click or box is kept, because the adapter was accepted on those.

    Args:
        mask: probabilities from the adapted model, (H, W).
        adapter: the adapter that is served, or None.
        prompt: the prompt, in pixels of the mask.
        predict: function from another adapter, or None for the unadapted model, to probabilities (H, W).

    Returns:
        The mask, and the adapter that it was predicted with.
    """
    used = adapter
    corrected = len(prompt.positive) + len(prompt.negative) + (prompt.box is not None) > 1
    if adapter is None or not corrected:
        return mask, used
    violated = count_violated(mask, prompt)
    for fallback in adapter.fallbacks():
        if not violated:
            break
        other = predict(fallback)
        if (count := count_violated(other, prompt)) < violated:
            mask, violated, used = other, count, fallback
    return mask, used
