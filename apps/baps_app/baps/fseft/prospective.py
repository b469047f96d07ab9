"""Judge adapters of the organ model on a volume that was labelled after their training."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from baps.errors import InputError
from baps.evaluation.cases import Case
from baps.fseft.adaptation import segment_volume
from baps.fseft.adapters import FewShotAdapter
from baps.fseft.choices import MIN_DICE
from baps.fseft.predictor import OrganSegmenter
from baps.fseft.volumes import load_volumes


def score_organ_adapters(
    segmenter: OrganSegmenter,
    organ: str,
    adapters: Mapping[str, FewShotAdapter],
    case: Case,
    wait: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Compare adapters with the unadapted model on a case.

    Args:
        segmenter: the organ model; requests take turns with this.
        organ: the organ.
        adapters: the adapters by name.
        case: the volume and the organ.
        wait: called before every segmentation.

    Returns:
        Difference of Dice (-1 to 1) by name. An organ that the model does not know counts as ``MIN_DICE`` without an
            adapter, as in the training.

    Raises:
        InputError: if the case cannot be used.
    """
    model = segmenter.model
    volumes, skipped = load_volumes([case], model)
    if not volumes:
        raise InputError(next(iter(skipped.values())))
    (volume,) = volumes[case.patient]

    def dice(adapter: FewShotAdapter | None) -> float:
        wait()
        with segmenter.turn:
            return volume.dice(segment_volume(model, organ, adapter, segmenter.feature_cache, volume))

    unadapted = MIN_DICE if model.network.index(organ) is None else dice(None)
    return {name: dice(adapter) - unadapted for name, adapter in adapters.items()}
