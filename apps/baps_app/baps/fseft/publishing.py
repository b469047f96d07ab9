"""Adapt to an organ with the volumes that a site has now, and publish the candidate if it is better."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from baps.errors import BapsError
from baps.fseft.adaptation import OrganProgress, OrganSettings, adapt_organ, plan_organ_adaptation
from baps.fseft.adapter_file import read_organ_adapter
from baps.fseft.adapters import FewShotAdapter
from baps.fseft.models import OrganModel
from baps.fseft.predictor import OrganSegmenter
from baps.fseft.volumes import VolumesByPatient
from baps.registry.store import AdapterStore
from baps.training.plan import ServedAdapter
from baps.training.publishing import keep_and_publish

logger = logging.getLogger(__name__)


def adapt_and_publish_organ(
    segmenter: OrganSegmenter,
    organ: str,
    volumes: VolumesByPatient,
    settings: OrganSettings,
    progress: OrganProgress = lambda epoch, epochs, dice: None,
    wait: Callable[[], None] = lambda: None,
    serve_trials: bool = True,
    labels: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Adapt to one organ unless that was done already, and let the gate decide what serves.

    An interrupted run is kept in the store, and continues when the same adaptation is requested again.

    Args:
        segmenter: has the model, the store and the cache of the model's features.
        organ: one of the model's classes, or a new one.
        volumes: labelled volumes of each patient.
        settings: the settings of the adaptation.
        progress: called after every epoch.
        wait: called before every step, see ``fit``.
        serve_trials: whether a candidate on trial may serve.
        labels: versions of the labels that are read, see ``label_versions_by_patient``.

    Returns:
        The outcome as JSON, see ``keep_and_publish``.

    Raises:
        BapsError: as ``adapt_organ`` and the store, or if the GPU is out of memory.
    """
    model, store = segmenter.model, segmenter.store
    served, checkpoint_folder = _load_served(store, organ, model), store.checkpoint_folder(organ)
    plan = plan_organ_adaptation(model, organ, volumes, settings)
    outcome = keep_and_publish(
        store,
        (organ,),
        (model.sha256,),
        plan.fingerprint,
        lambda: adapt_organ(
            model,
            organ,
            volumes,
            settings,
            plan,
            segmenter.feature_cache,
            served=served,
            progress=progress,
            wait=wait,
            checkpoint_folder=checkpoint_folder,
        ),
        serve_trials=serve_trials,
        labels=labels,
    )
    shutil.rmtree(checkpoint_folder, ignore_errors=True)
    return outcome


def _load_served(store: AdapterStore, organ: str, model: OrganModel) -> ServedAdapter[FewShotAdapter] | None:
    """Load the adapter that is served for an organ, if it can be read."""
    version = store.served(organ, model.sha256)
    if version is None:
        return None
    try:
        return ServedAdapter(*read_organ_adapter(store.file(*version), model))
    except BapsError as error:  # A new training replaces the damaged adapter.
        logger.warning("%s", error)
        return None
