"""Choosing how much of an image the black box is shown: what served the labelled slices best."""

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
_WORTH = 0.01
"""Dice that a zoom must gain: without one, more clicks share an encoding."""


def choose_zoom(
    black_box: BlackBox,
    visual_prompt: VisualPrompt,
    slices: Sequence[AnySlice],
    settings: AdaptationSettings,
    images: int,
    query_log: QueryLog,
    run: str,
) -> float:
    """The share of ``ZOOM_SHARES`` with the best Dice on labelled slices.

    Args:
        black_box: the model.
        visual_prompt: as it is before training.
        slices: to learn from.
        settings: kind of prompt, and seed.
        images: that may be asked.
        journal: keeps the answers.
        run: what the journal calls this run.
    """
    shown = evenly_spaced(slices, images // len(ZOOM_SHARES))
    if not shown:
        return 1.0

    def score(share: float) -> float:
        def asked() -> list[float]:
            adapter = Adapter(visual_prompt, zoom=share)
            return [float(score_slices(black_box, adapter, shown, settings.prompt, settings.seed, 1).mean())]

        return query_log.get_or_query({"run": run, "zoom": str(share)}, asked)[0]

    dice = {share: score(share) for share in ZOOM_SHARES}
    best = max(dice, key=lambda share: dice[share])
    return best if dice[best] > dice[1.0] + _WORTH else 1.0
