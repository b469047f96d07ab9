"""Learning an organ on site: adapt to the volumes that there are now, and serve the candidate if it is better."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from baps.errors import BapsError
from baps.fseft.adaptation import OrganSettings, Report, ServedOrgan, adapt_organ, plan_organ_adaptation
from baps.fseft.adapter_file import read_organ_adapter
from baps.fseft.models import OrganModel
from baps.fseft.predictor import OrganSegmenter
from baps.fseft.volumes import VolumesByPatient
from baps.registry.store import AdapterStore
from baps.training.publishing import keep_and_publish

logger = logging.getLogger(__name__)


def adapt_and_publish_organ(
    segmenter: OrganSegmenter,
    organ: str,
    volumes: VolumesByPatient,
    settings: OrganSettings,
    split_memory: Path | None = None,
    told: Report = lambda epoch, epochs, dice: None,
    pause: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Adapt to one organ, unless that was done already, and publish what is better.

    A run that is broken off is kept in the store, and goes on from there when the same is asked for again.

    Args:
        segmenter: tells the model, the store and where the model's features are kept.
        organ, volumes, settings, split_memory: see ``plan_organ_adaptation``.
        told, pause: see ``adapt_organ``.

    Returns:
        What became of it, see ``keep_and_publish``.

    Raises:
        BapsError: as ``adapt_organ`` and the store, or if the GPU has not enough memory.
    """
    model, store = segmenter.model, segmenter.store
    served, unfinished = _served(store, organ, model), store.unfinished(organ)
    plan = plan_organ_adaptation(model, organ, volumes, settings, split_memory, served)
    said = keep_and_publish(
        store,
        (organ,),
        plan.fingerprint,
        lambda: adapt_organ(
            model,
            organ,
            volumes,
            settings,
            plan,
            segmenter.readings,
            served=served,
            told=told,
            pause=pause,
            unfinished=unfinished,
        ),
    )
    shutil.rmtree(unfinished, ignore_errors=True)
    return said


def _served(store: AdapterStore, organ: str, model: OrganModel) -> ServedOrgan | None:
    """What serves an organ, if it can be read."""
    found = store.served(organ, model.sha256)
    if found is None:
        return None
    try:
        return ServedOrgan(*read_organ_adapter(store.file(*found), model))
    except BapsError as error:  # Training anew is what mends it.
        logger.warning("%s", error)
        return None
