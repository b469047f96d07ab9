"""Dice of a black box, adapted or not, on labelled slices with fixed clicks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from baps.adapters.adapter import Adapter, segment_adapted
from baps.blackbox import BlackBox
from baps.evaluation.slices import AnySlice
from baps.imaging.metrics import dice
from baps.prompts.simulated import draw_prompt

_BATCH = 16


def score_slices(
    black_box: BlackBox,
    adapter: Adapter | None,
    slices: Sequence[AnySlice],
    prompt: str,
    seed: int,
    click_sets: int,
) -> NDArray[np.float64]:
    """Dice of each slice with each set of clicks.

    The clicks depend on the seed, the set and the slice's place alone, so two calls can be compared pair by pair.

    Args:
        black_box: the model.
        adapter: what was trained, or None for the model as it is.
        slices: N of them.
        prompt: ``click`` or ``box``.
        seed: of the clicks.
        click_sets: how many times, each with other clicks.

    Returns:
        (N, click_sets).
    """
    scores = np.zeros((len(slices), click_sets))
    for number in range(click_sets):
        for start in range(0, len(slices), _BATCH):
            rows = range(start, min(start + _BATCH, len(slices)))
            picked = [slices[row] for row in rows]
            truths = [s.truth for s in picked]
            prompts = [
                draw_prompt(truth, prompt, np.random.default_rng([seed, 7919, number, row]))
                for row, truth in zip(rows, truths, strict=True)
            ]
            images = np.stack([s.image for s in picked])
            answers = segment_adapted(black_box, adapter, images, prompts)
            for row, probability, truth in zip(rows, answers, truths, strict=True):
                scores[row, number] = dice(probability > 0.5, truth)
    return scores
