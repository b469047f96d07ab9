"""Clicks as radiologists make them: Dice after each of up to ten prompts, the next where the mask is most wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baps.adaptation.slices import LabelledSlice, evenly_spaced
from baps.adapter import Adapter, segment_adapted
from baps.blackbox import BlackBox
from baps.metrics import dice
from baps.simulated_prompts import MOST_CLICKS, draw_correction, draw_prompt

_SETS = 2
_SLICES = 6
_SEED = 1000
_GOOD = 0.85
_BATCH = 16


def correct(
    black_box: BlackBox, adapter: Adapter | None, patients: Sequence[Sequence[LabelledSlice]], kind: str
) -> dict[str, Any]:
    """Go on clicking on each slice.

    Args:
        black_box: the model.
        adapter: of it, or None.
        patients: slices of each; up to six are clicked on, twice.
        kind: of the first prompt.

    Returns:
        ``by_clicks``, mean Dice over slices, then patients, after each prompt; ``clicks_to_85``, prompts until a
        slice's Dice is 0.85, ten where it never is; ``not_reached``, the share of those.
    """
    found = [_patient(black_box, adapter, evenly_spaced(pieces, _SLICES), kind) for pieces in patients]
    good = [scores >= _GOOD for scores in found]
    needed = [np.where(g.any(1), g.argmax(1) + 1, MOST_CLICKS) for g in good]
    return {
        "by_clicks": np.mean([scores.mean(0) for scores in found], axis=0).tolist(),
        "clicks_to_85": float(np.mean([n.mean() for n in needed])),
        "not_reached": float(np.mean([1 - g.any(1).mean() for g in good])),
    }


def _patient(
    black_box: BlackBox, adapter: Adapter | None, pieces: Sequence[LabelledSlice], kind: str
) -> NDArray[np.float64]:
    """Dice of each slice and set of clicks after each prompt, (slices * sets, MOST_CLICKS)."""
    trials = [(piece, np.random.default_rng([_SEED, 31, n, row])) for row, piece in enumerate(pieces)
              for n in range(_SETS)]  # fmt: skip
    scores = np.zeros((len(trials), MOST_CLICKS))
    prompts = {n: draw_prompt(piece.truth, kind, random) for n, (piece, random) in enumerate(trials)}
    masks: dict[int, NDArray[np.bool_]] = {}
    for count in range(MOST_CLICKS):
        if count:
            longer = {n: draw_correction(p, masks[n], trials[n][0].truth, trials[n][1]) for n, p in prompts.items()}
            prompts = {n: prompt for n, prompt in longer.items() if prompt}
        rows = list(prompts)
        for start in range(0, len(rows), _BATCH):
            chosen = rows[start : start + _BATCH]
            images = np.stack([trials[n][0].image for n in chosen])
            answers = segment_adapted(black_box, adapter, images, [prompts[n] for n in chosen])
            for n, answer in zip(chosen, answers, strict=True):
                masks[n] = answer > 0.5
                scores[n, count:] = dice(masks[n], trials[n][0].truth)
    return scores
