"""Score a black box, with or without an adapter, on labelled slices with fixed clicks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from baps.adapters.adapter import Adapter, segment_adapted
from baps.blackbox import BlackBox
from baps.evaluation.slices import AnySlice, shown_sizes
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
    """Compute the Dice of each slice with each set of clicks.

    The clicks depend on the seed, the set and the slice's position only, so that two calls can be compared pair by
    pair.

    Args:
        black_box: the model.
        adapter: an adapter of the black box, or None for the unadapted model.
        slices: N labelled slices.
        prompt: ``click`` or ``box``.
        seed: seed of the clicks.
        click_sets: number of sets of clicks.

    Returns:
        Dice (0 to 1), (N, click_sets).
    """
    scores = np.zeros((len(slices), click_sets))
    for number in range(click_sets):
        for start in range(0, len(slices), _BATCH):
            rows = range(start, min(start + _BATCH, len(slices)))
            batch = [slices[row] for row in rows]
            targets = [s.target for s in batch]
            prompts = [
                draw_prompt(target, prompt, np.random.default_rng([seed, 7919, number, row]))
                for row, target in zip(rows, targets, strict=True)
            ]
            images = np.stack([s.image for s in batch])
            answers = segment_adapted(black_box, adapter, images, prompts, shown_sizes(batch))
            for row, probability, target in zip(rows, answers, targets, strict=True):
                scores[row, number] = dice(probability > 0.5, target)
    return scores
