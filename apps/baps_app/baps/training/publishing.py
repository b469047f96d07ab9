"""Adapt to the labels that a site has now, and publish the candidate if it is better than what is served."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from baps.adapters.adapter import Adapter
from baps.adapters.adapter_file import HasStateDict
from baps.blackbox import BlackBox
from baps.errors import BapsError
from baps.evaluation.acceptance import Acceptance
from baps.evaluation.slices import SlicesByPatient
from baps.registry.store import AdapterStore
from baps.training.adapt import ProgressReport, adapt, plan_adaptation
from baps.training.plan import ServedAdapter
from baps.training.settings import AdaptationSettings

logger = logging.getLogger(__name__)

_REPORTED_KEYS = ("black_box_images", "replayed_images", "parameters", "curve")
"""Keys of a record that the reply repeats."""


class Candidate(Protocol):
    """The result of an adaptation."""

    @property
    def adapter(self) -> HasStateDict:
        """The weights of the candidate."""

    @property
    def acceptance(self) -> Acceptance:
        """Whether the candidate is to be published."""

    @property
    def record(self) -> dict[str, Any]:
        """Everything needed to audit the candidate."""


def adapt_and_publish(
    store: AdapterStore,
    names: Sequence[str],
    black_box: BlackBox,
    slices: SlicesByPatient,
    settings: AdaptationSettings,
    progress: Callable[[ProgressReport], None] | None = None,
) -> dict[str, Any]:
    """Adapt to one label, starting from the served adapter, and publish the candidate if it is better.

    An adaptation to the same data with the same settings is not repeated. A candidate that is no better than the
    unadapted model, or worse than the served adapter, is stored but not served.

    Args:
        store: the adapters of the site.
        names: names under which the adapter is stored; the first is the label that it is trained for.
        black_box: the model.
        slices: labelled slices of each patient.
        settings: the settings of the adaptation.
        progress: called with the progress after every step.

    Returns:
        The outcome as JSON: the version, its ``status`` (``published``, or that of its acceptance), the numbers of the
            evaluation, and the ``reason`` as a sentence.

    Raises:
        BapsError: as ``adapt`` and the store.
    """
    label = names[0]
    served = _load_served(store, label, black_box)
    plan = plan_adaptation(black_box, slices, settings, store.split_memory, served)
    log = store.log(label)
    return keep_and_publish(
        store, names, plan.fingerprint, lambda: adapt(black_box, slices, settings, plan, progress, log, served), log
    )


def keep_and_publish(
    store: AdapterStore,
    names: Sequence[str],
    fingerprint: str,
    adapt_candidate: Callable[[], Candidate],
    log: Path | None = None,
) -> dict[str, Any]:
    """Make a candidate unless there is one of the same fingerprint, store it, and publish it if it was accepted.

    Args:
        store: the adapters of the site.
        names: names under which the adapter is stored; the first is the label that it is trained for.
        fingerprint: the same for two candidates that are made of the same data in the same way.
        adapt_candidate: makes the candidate.
        log: query log of the adaptation, which an interrupted run continues from; a copy is stored beside the
            candidate.

    Returns:
        The outcome as JSON, see ``adapt_and_publish``.

    Raises:
        BapsError: as the adaptation and the store.
    """
    label = names[0]
    versions = {name: version for name in names if (version := store.find(name, fingerprint))}
    repeated = label in versions
    if len(versions) < len(names):
        result = adapt_candidate()
        for name in set(names) - set(versions):
            record = {**result.record, "reason": result.acceptance.sentence()}
            versions[name] = store.add(name, result.adapter, record, result.acceptance.status, log)
        if log:
            log.unlink(missing_ok=True)
    for name, version in versions.items():
        record = store.record(name, version)
        if record["status"] == "accepted" and not store.was_served(name, version):  # Do not undo a rollback.
            store.publish(name, version)
    record = store.record(label, versions[label])
    again = " Nothing has changed since: the same labels and settings gave this version before." if repeated else ""
    return {
        "version": record["version"],
        "status": "published" if store.published(label) == versions[label] else record["status"],
        **{key: record[key] for key in _REPORTED_KEYS if key in record},
        **(record["verdict"] or {}),
        "against_served": record["against_served"],
        "reason": record["reason"] + again,
    }


def _load_served(store: AdapterStore, label: str, black_box: BlackBox) -> ServedAdapter[Adapter] | None:
    """Load the adapter that is served for a label.

    The gain of a shared adapter is ignored, because it was measured on other labels.
    """
    version = store.served(label, *black_box.capabilities.identity)
    if version is None:
        return None
    try:
        served = store.load(*version)
    except BapsError as error:  # A new training replaces the damaged adapter.
        logger.warning("%s", error)
        return None
    own = version[0] == label
    return ServedAdapter(served.adapter, served.record if own else {**served.record, "verdict": None})
