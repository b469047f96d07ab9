"""Adapt to the labels that a site has now, and publish the candidate if it is better than what is served."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from baps.adapters.adapter import Adapter
from baps.adapters.adapter_file import HasStateDict
from baps.blackbox import BlackBox
from baps.errors import BapsError
from baps.evaluation.slices import SlicesByPatient
from baps.registry.evidence import change_evidence, evidence_key, read_statuses
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
    def record(self) -> dict[str, Any]:
        """Everything needed to audit the candidate."""

    def sentence(self) -> str:
        """Describe what the training measured.

        Returns:
            The sentences.
        """


def adapt_and_publish(
    store: AdapterStore,
    names: Sequence[str],
    black_box: BlackBox,
    slices: SlicesByPatient,
    settings: AdaptationSettings,
    progress: Callable[[ProgressReport], None] | None = None,
    serve_trials: bool = True,
    labels: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Adapt to one label, starting from the served adapter, and let the gate decide what serves.

    An adaptation to the same data with the same settings is not repeated.

    Args:
        store: the adapters of the site.
        names: names under which the adapter is stored; the first is the label that it is trained for.
        black_box: the model.
        slices: labelled slices of each patient.
        settings: the settings of the adaptation.
        progress: called with the progress after every step.
        serve_trials: whether a candidate on trial may serve.
        labels: versions of the labels that are read, see ``label_versions_by_patient``.

    Returns:
        The outcome as JSON: the version, its ``status`` (a ``State`` of the gate) and whether it ``serves``, the
            numbers of the evaluation, and the ``reason`` as sentences.

    Raises:
        BapsError: as ``adapt`` and the store.
    """
    label = names[0]
    served = _load_served(store, label, black_box)
    plan = plan_adaptation(black_box, slices, settings)
    log = store.log(label)
    return keep_and_publish(
        store,
        names,
        black_box.capabilities.identity,
        plan.fingerprint,
        lambda: adapt(black_box, slices, settings, plan, progress, log, served),
        log,
        serve_trials,
        labels,
    )


def keep_and_publish(
    store: AdapterStore,
    names: Sequence[str],
    identity: tuple[str, ...],
    fingerprint: str,
    adapt_candidate: Callable[[], Candidate],
    log: Path | None = None,
    serve_trials: bool = True,
    labels: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Make a candidate unless there is one of the same fingerprint, store it, and let the gate decide what serves.

    Args:
        store: the adapters of the site.
        names: names under which the adapter is stored; the first is the label that it is trained for.
        identity: SHA-256 of the model's weights and, for a black box, its preprocessing.
        fingerprint: the same for two candidates that are made of the same data in the same way.
        adapt_candidate: makes the candidate.
        log: query log of the adaptation, which an interrupted run continues from; a copy is stored beside the
            candidate.
        serve_trials: whether a candidate on trial may serve.
        labels: versions of the labels that are read, see ``label_versions_by_patient``.

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
            record = {
                **result.record,
                "label_versions": {patient: dict(versions) for patient, versions in labels.items()},
                "reason": result.sentence(),
            }
            versions[name] = store.add(name, result.adapter, record, log=log)
        if log:
            log.unlink(missing_ok=True)
    key = evidence_key(*identity)
    for name, version in versions.items():
        served = store.served(name, *identity)
        with change_evidence(store, name, identity, serve_trials) as evidence:
            evidence.open(store, name, version, key)
            if served and served[0] == name and served[1] != version:
                stream = evidence.gate.open(served[1], key)
                for patient, difference in store.record(name, version)["scores"]["served_differences"].items():
                    if patient not in stream:
                        stream.add(patient, difference)
    record, status = store.record(label, versions[label]), read_statuses(store, label)[versions[label]]
    again = " Nothing has changed since: the same labels and settings gave this version before." if repeated else ""
    return {
        "version": record["version"],
        "status": status.state.value,
        "serves": status.serves,
        **{key: record[key] for key in _REPORTED_KEYS if key in record},
        **(record["verdict"] or {}),
        "against_served": record["against_served"],
        "reason": f"{status.sentence()}. {record['reason']}{again}",
    }


def _load_served(store: AdapterStore, label: str, black_box: BlackBox) -> ServedAdapter[Adapter] | None:
    """Load the adapter that is served for a label, if it can be read."""
    version = store.served(label, *black_box.capabilities.identity)
    if version is None:
        return None
    try:
        served = store.load(*version)
    except BapsError as error:  # A new training replaces the damaged adapter.
        logger.warning("%s", error)
        return None
    return ServedAdapter(served.adapter, served.record)
