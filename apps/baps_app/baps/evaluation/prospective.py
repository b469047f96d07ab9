"""Judge adapters on a volume that was labelled after their training."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from baps.adapters.adapter import Adapter
from baps.blackbox import BlackBox
from baps.evaluation.cases import Case, labelled_slices
from baps.evaluation.scoring import score_slices

_SEED = 20_011
"""Seed of the clicks."""


def score_adapters(
    black_box: BlackBox,
    adapters: Mapping[str, Adapter],
    case: Case,
    max_images: int,
    wait: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Compare adapters with the unadapted model on slices of a case, with one click on each.

    Args:
        black_box: the model.
        adapters: the adapters by name.
        case: the volume and the organ.
        max_images: maximum number of images to send to the model; an image is sent for each slice, adapter and the
            unadapted model.
        wait: called before every image.

    Returns:
        Mean difference of Dice (-1 to 1) by name; empty if there are too few images for one slice.

    Raises:
        InputError: if the case cannot be used.
        BapsError: if the model does not answer.
    """
    slice_count = max_images // (len(adapters) + 1)
    if not adapters or not slice_count:
        return {}
    slices = labelled_slices(case, black_box.capabilities.input_size, slice_count)
    arms = (None, *adapters.values())
    scores = np.zeros((len(arms), len(slices)))
    for column, piece in enumerate(slices):
        for row, adapter in enumerate(arms):
            wait()
            scores[row, column] = score_slices(black_box, adapter, [piece], "click", _SEED + column, 1)[0, 0]
    gains = (scores[1:] - scores[0]).mean(1)
    return dict(zip(adapters, gains.tolist(), strict=True))
