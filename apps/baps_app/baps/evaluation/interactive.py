"""Simulate a user who keeps clicking where the mask is most wrong, and measure the accuracy per number of clicks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from baps.adapters.adapter import Adapter, segment_adapted, segment_cached
from baps.adapters.click_consistency import fall_back_on_violated_clicks
from baps.blackbox import BlackBox, Encoding, Size
from baps.imaging.metrics import dice
from baps.prompts import Prompt
from baps.prompts.simulated import MAX_CLICKS, draw_correction, draw_prompt

_GOOD_DICE = 0.85

SegmentFunction = Callable[[Sequence[Prompt]], NDArray[np.float32]]
"""Return the probabilities (N, S, S) for N prompts on one image, (X, Y) in its pixels."""


@dataclass(frozen=True)
class InteractiveScores:
    """Accuracy per number of clicks, averaged over slices, labels, then cases.

    Attributes:
        by_clicks: mean Dice (0 to 1) after the first prompt, after one more click, and so on.
        by_clicks_std: its standard deviation over the sets of clicks.
        noc_85: mean number of prompts until a slice's Dice first reaches 0.85; ten if it never does.
        noc_85_failures: share of the slices that never reach it.
    """

    by_clicks: list[float]
    by_clicks_std: list[float]
    noc_85: float
    noc_85_failures: float


def simulate_corrections(
    segment: Callable[[Sequence[Prompt]], Sequence[NDArray[np.bool_]]],
    target: NDArray[np.bool_],
    kind: str,
    clicks: int,
    generators: Sequence[np.random.Generator],
) -> NDArray[np.float64]:
    """Prompt for one object, then repeatedly click where the mask is most wrong.

    Args:
        segment: returns a mask, (H, W), for each of several prompts.
        target: mask of the object, (H, W); prompts are (X, Y) in its pixels.
        kind: kind of the first prompt, ``click`` or ``box``.
        clicks: number of prompts, including the first.
        generators: a source of randomness for each set of clicks.

    Returns:
        Dice (0 to 1) after each click, (sets, clicks). If a mask needs no more clicks, its Dice stays, and ``segment``
            is not called for it.
    """
    scores = np.empty((len(generators), clicks))
    prompts = {n: draw_prompt(target, kind, random) for n, random in enumerate(generators)}
    masks: dict[int, NDArray[np.bool_]] = {}
    for count in range(clicks):
        if count:
            corrected = {n: draw_correction(prompt, masks[n], target, generators[n]) for n, prompt in prompts.items()}
            prompts = {n: prompt for n, prompt in corrected.items() if prompt}
        if not prompts:
            break
        for n, mask in zip(prompts, segment(list(prompts.values())), strict=True):
            masks[n] = mask
            scores[n, count:] = dice(mask, target)
    return scores


def build_segment_function(
    black_box: BlackBox, adapter: Adapter | None, image: NDArray[np.uint8], size: Size | None = None
) -> SegmentFunction:
    """Build the function that segments an image for several prompts, as a viewer would get the masks.

    The image is encoded once if the black box supports encodings.

    Args:
        black_box: the model.
        adapter: an adapter of the black box, or None for the unadapted model.
        image: (S, S, 3) uint8.
        size: height and width of the part of the image that shows the slice, pixels, or None if there is no padding.

    Returns:
        The function.
    """
    encodings: dict[Hashable, Encoding] = {}

    def predict(candidate: Adapter | None, prompt: Prompt) -> NDArray[np.float32]:
        def get_or_encode(key: Hashable, encode: Callable[[], Encoding]) -> Encoding:
            full_key = (candidate is adapter, key)
            if full_key not in encodings:
                encodings[full_key] = encode()
            return encodings[full_key]

        return segment_cached(black_box, candidate, image, prompt, get_or_encode, size)

    def segment(prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        if black_box.capabilities.encodings:
            answers = [predict(adapter, prompt) for prompt in prompts]
        else:
            images = np.repeat(image[None], len(prompts), axis=0)
            sizes = None if size is None else [size] * len(prompts)
            answers = list(segment_adapted(black_box, adapter, images, prompts, sizes))
        for row, prompt in enumerate(prompts):
            answers[row], _ = fall_back_on_violated_clicks(
                answers[row], adapter, prompt, partial(predict, prompt=prompt)
            )
        return np.stack(answers)

    return segment


def summarise_corrections(cases: Sequence[Collection[NDArray[np.float64]]]) -> InteractiveScores:
    """Average the scores of ``simulate_corrections``.

    Args:
        cases: for each case, the Dice of each of its labels, (slices, sets, clicks).

    Returns:
        The accuracy per number of clicks.
    """

    def by_click_set(scores: NDArray[np.float64]) -> NDArray[np.float64]:
        # For each set of clicks: Dice after each click, number of clicks, share of slices that were not reached.
        good = scores >= _GOOD_DICE
        not_reached = ~good.any(axis=-1, keepdims=True)
        clicks_needed = np.where(not_reached, MAX_CLICKS, good.argmax(axis=-1, keepdims=True) + 1)
        return np.concatenate([scores, clicks_needed, not_reached], axis=-1).mean(axis=0)

    table = np.mean([np.mean([by_click_set(scores) for scores in labels], axis=0) for labels in cases], axis=0)
    *by_clicks, clicks_needed, not_reached = table.mean(axis=0).tolist()
    return InteractiveScores(by_clicks, table[:, :-2].std(axis=0).tolist(), clicks_needed, not_reached)
