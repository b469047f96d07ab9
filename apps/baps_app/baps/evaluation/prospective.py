"""Judge adapters on a volume that was labelled after their training."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from baps.adapters.adapter import Adapter, segment_adapted
from baps.blackbox import BlackBox
from baps.evaluation.cases import Case, prompted_slices
from baps.evaluation.slices import shown_sizes
from baps.imaging.metrics import dice
from baps.prompts import Prompt
from baps.prompts.simulated import draw_prompt

_SEED = 20_011
"""Seed of the clicks."""


def score_adapters(
    black_box: BlackBox,
    adapters: Mapping[str, Adapter],
    case: Case,
    max_images: int,
    prompts: Mapping[int, Prompt],
    wait: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Compare adapters with the unadapted model on slices of a case, with one prompt on each.

    Args:
        black_box: the model.
        adapters: the adapters by name.
        case: the volume and the organ.
        max_images: maximum number of images to send to the model; an image is sent for each slice, adapter and the
            unadapted model.
        prompts: first prompts that a user made, by index across K, (X, Y) in pixels of the slice. These slices come
            first; on the others a click is simulated.
        wait: called before every image.

    Returns:
        Mean difference of Dice (-1 to 1) by name; empty if there are too few images for one slice.

    Raises:
        InputError: if the case cannot be used.
        BapsError: if the model does not answer.
    """
    kind = "click" if black_box.capabilities.clicks else "box"
    slice_count = max_images // (len(adapters) + 1)
    if not adapters or not slice_count:
        return {}
    slices = prompted_slices(case, black_box.capabilities.input_size, slice_count, prompts)
    arms = (None, *adapters.values())
    scores = np.zeros((len(arms), len(slices)))
    for column, (piece, made) in enumerate(slices):
        prompt = made or draw_prompt(piece.target, kind, np.random.default_rng([_SEED, column]))
        for row, adapter in enumerate(arms):
            wait()
            answer = segment_adapted(black_box, adapter, piece.image[None], [prompt], shown_sizes([piece]))
            scores[row, column] = dice(next(iter(answer)) > 0.5, piece.target)
    gains = (scores[1:] - scores[0]).mean(1)
    return dict(zip(adapters, gains.tolist(), strict=True))
