"""Adapt a 3D black box to the labels that a site has now, and let the gate decide what serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from baps.blackbox.volumes import VolumeBlackBox
from baps.evaluation.labelled_volumes import VolumesByPatient
from baps.registry.store import AdapterStore
from baps.training.adapt import ProgressReport
from baps.training.publishing import keep_and_publish
from baps.training.volumes.adapt import adapt_volumes, plan_volume_adaptation
from baps.training.volumes.settings import VolumeSettings


def adapt_and_publish_volumes(
    store: AdapterStore,
    label: str,
    black_box: VolumeBlackBox,
    volumes: VolumesByPatient,
    settings: VolumeSettings,
    progress: Callable[[ProgressReport], None] | None = None,
    serve_trials: bool = True,
    labels: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Adapt to one label. An adaptation to the same data with the same settings is not repeated.

    Args:
        store: the adapters of the site's 3D black boxes.
        label: the organ.
        black_box: the model.
        volumes: labelled volumes of each patient.
        settings: the settings of the adaptation.
        progress: called with the progress after every step.
        serve_trials: whether a candidate on trial may serve.
        labels: versions of the labels that are read, see ``label_versions_by_patient``.

    Returns:
        The outcome as JSON, see ``baps.training.publishing.adapt_and_publish``.

    Raises:
        BapsError: as ``adapt_volumes`` and the store.
    """
    plan, log = plan_volume_adaptation(black_box, volumes, settings), store.log(label)
    return keep_and_publish(
        store,
        [label],
        black_box.capabilities.identity,
        plan.fingerprint,
        lambda: adapt_volumes(black_box, volumes, settings, plan, progress, log),
        log,
        serve_trials,
        labels,
    )
