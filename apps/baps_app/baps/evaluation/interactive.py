"""Going on clicking where the mask is most wrong, as radiologists do, and how soon that leads to a good mask."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from baps.adapters.adapter import Adapter, segment_adapted, segment_cached
from baps.adapters.click_consistency import fall_back_on_violated_clicks
from baps.blackbox import BlackBox, Encoding
from baps.imaging.metrics import dice
from baps.prompts import Prompt
from baps.prompts.simulated import MAX_CLICKS, draw_correction, draw_prompt

_GOOD = 0.85

Ask = Callable[[Sequence[Prompt]], NDArray[np.float32]]
"""Probabilities (N, S, S) for N prompts on one image, in its pixels."""


@dataclass(frozen=True)
class Corrections:
    """What is gained by going on clicking; all over slices, labels, then cases.

    Attributes:
        by_clicks: mean Dice after the first prompt, after one more click, and so on.
        by_clicks_std: its spread over the sets of clicks.
        noc_85: Mean number of prompts until a slice's Dice is 0.85 for the first time; ten where it never is.
        noc_85_failures: Share of the slices where it never is.
    """

    by_clicks: list[float]
    by_clicks_std: list[float]
    noc_85: float
    noc_85_failures: float


def simulate_corrections(
    ask: Callable[[Sequence[Prompt]], Sequence[NDArray[np.bool_]]],
    truth: NDArray[np.bool_],
    kind: str,
    clicks: int,
    randoms: Sequence[np.random.Generator],
) -> NDArray[np.float64]:
    """Prompt for one object, and click on where the mask is most wrong, again and again.

    Args:
        ask: gives a mask, (H, W), for each of several prompts.
        truth: the object, (H, W); prompts are in its pixels.
        kind: of the first prompt, ``click`` or ``box``.
        clicks: the first prompt included.
        randoms: a source of randomness for each set of clicks.

    Returns:
        Dice after each click, (sets, clicks). Where a mask needs none any more, its Dice stays, and nothing is asked.
    """
    scores = np.empty((len(randoms), clicks))
    prompts = {n: draw_prompt(truth, kind, random) for n, random in enumerate(randoms)}
    masks: dict[int, NDArray[np.bool_]] = {}
    for count in range(clicks):
        if count:
            drawn = {n: draw_correction(prompt, masks[n], truth, randoms[n]) for n, prompt in prompts.items()}
            prompts = {n: prompt for n, prompt in drawn.items() if prompt}
        if not prompts:
            break
        for n, mask in zip(prompts, ask(list(prompts.values())), strict=True):
            masks[n] = mask
            scores[n, count:] = dice(mask, truth)
    return scores


def asker(black_box: BlackBox, adapter: Adapter | None, image: NDArray[np.uint8]) -> Ask:
    """What gives the probabilities for several prompts on an image, as a viewer gets them.

    What is shown is encoded once where that can be.
    """
    encodings: dict[Hashable, Encoding] = {}

    def through(one: Adapter | None, prompt: Prompt) -> NDArray[np.float32]:
        def keep(shown: Hashable, encode: Callable[[], Encoding]) -> Encoding:
            key = (one is adapter, shown)
            if key not in encodings:
                encodings[key] = encode()
            return encodings[key]

        return segment_cached(black_box, one, image, prompt, keep)

    def ask(prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        if black_box.capabilities.encodings:
            answers = [through(adapter, prompt) for prompt in prompts]
        else:
            images = np.repeat(image[None], len(prompts), axis=0)
            answers = list(segment_adapted(black_box, adapter, images, prompts))
        for row, prompt in enumerate(prompts):
            answers[row], _ = fall_back_on_violated_clicks(
                answers[row], adapter, prompt, partial(through, prompt=prompt)
            )
        return np.stack(answers)

    return ask


def summarise(cases: Sequence[Collection[NDArray[np.float64]]]) -> Corrections:
    """Over cases, of each label of a case the Dice of its slices, (slices, sets, clicks)."""

    def columns(scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of each set of clicks: Dice after each click, clicks needed, share of slices not reached."""
        good = scores >= _GOOD
        missed = ~good.any(axis=-1, keepdims=True)
        needed = np.where(missed, MAX_CLICKS, good.argmax(axis=-1, keepdims=True) + 1)
        return np.concatenate([scores, needed, missed], axis=-1).mean(axis=0)

    table = np.mean([np.mean([columns(scores) for scores in labels], axis=0) for labels in cases], axis=0)
    *by_clicks, needed, missed = table.mean(axis=0).tolist()
    return Corrections(by_clicks, table[:, :-2].std(axis=0).tolist(), needed, missed)
