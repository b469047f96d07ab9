"""Choose how much of an image the black box is shown, by the Dice on the labelled slices."""

from __future__ import annotations

from collections.abc import Sequence

from baps.adapters.adapter import Adapter
from baps.adapters.visual_prompt import VisualPrompt
from baps.blackbox import BlackBox
from baps.evaluation.scoring import score_slices
from baps.evaluation.slices import AnySlice, evenly_spaced
from baps.training.query_log import QueryLog
from baps.training.settings import AdaptationSettings

ZOOM_SHARES = (1.0, 0.75, 0.5)
_MIN_GAIN = 0.01
"""Smallest gain in Dice (0 to 1) that justifies a zoom: without one, more clicks share an encoding."""


def choose_zoom(
    black_box: BlackBox,
    visual_prompt: VisualPrompt,
    slices: Sequence[AnySlice],
    settings: AdaptationSettings,
    images: int,
    query_log: QueryLog,
    run: str,
) -> float:
    """Choose the zoom among ``ZOOM_SHARES`` with the best Dice on labelled slices.

    Args:
        black_box: the model.
        visual_prompt: the visual prompt before training.
        slices: the labelled slices.
        settings: kind of prompt, and seed.
        images: number of images to query.
        query_log: logs the answers.
        run: name of this run in the log.

    Returns:
        The share of an image's side that the black box is shown, 0 to 1; 1 for all of it.
    """
    used_slices = evenly_spaced(slices, images // len(ZOOM_SHARES))
    if not used_slices:
        return 1.0

    def score(zoom: float) -> float:
        def query() -> list[float]:
            adapter = Adapter(visual_prompt, zoom=zoom)
            return [float(score_slices(black_box, adapter, used_slices, settings.prompt, settings.seed, 1).mean())]

        return query_log.get_or_query({"run": run, "zoom": str(zoom)}, query)[0]

    dice = {zoom: score(zoom) for zoom in ZOOM_SHARES}
    best = max(dice, key=lambda zoom: dice[zoom])
    return best if dice[best] > dice[1.0] + _MIN_GAIN else 1.0
