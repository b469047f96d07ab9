"""Learning on site, over weeks: adapt to the labels that there are now, and serve the candidate if it is better."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from baps.adapters.adapter_file import HasStateDict
from baps.blackbox import BlackBox
from baps.errors import BapsError
from baps.evaluation.acceptance import Acceptance
from baps.evaluation.slices import SlicesByPatient
from baps.registry.store import AdapterStore
from baps.training.adapt import ProgressReport, Served, adapt, plan_adaptation
from baps.training.settings import AdaptationSettings

logger = logging.getLogger(__name__)

_TOLD = ("black_box_images", "replayed_images", "parameters", "curve")
"""What of a record is told at once."""


class Candidate(Protocol):
    """What came out of an adaptation."""

    @property
    def adapter(self) -> HasStateDict:
        """Its weights."""

    @property
    def check(self) -> Acceptance:
        """Whether it is to be served."""

    @property
    def record(self) -> dict[str, Any]:
        """Everything needed to audit it."""


def adapt_and_publish(
    store: AdapterStore,
    names: Sequence[str],
    black_box: BlackBox,
    slices: SlicesByPatient,
    settings: AdaptationSettings,
    progress: Callable[[ProgressReport], None] | None = None,
) -> dict[str, Any]:
    """Adapt to one label, unless that was done already, going on from what is served, and publish what is better.

    A candidate that is no better than the model as it is, or worse than what is served, is kept and not served.

    Args:
        store: of the site.
        names: what the adapter is kept as; the first is the label that it is trained for.
        black_box, slices, settings, progress: see ``adapt``.

    Returns:
        What became of it, as JSON: the version, its ``status`` (``published``, or what the check said), the numbers of
        the check and the ``reason`` as a sentence.

    Raises:
        BapsError: as ``adapt`` and the store.
    """
    label = names[0]
    served = _served(store, label, black_box)
    plan = plan_adaptation(black_box, slices, settings, store.split_memory, served)
    log = store.log(label)
    return keep_and_publish(
        store, names, plan.fingerprint, lambda: adapt(black_box, slices, settings, plan, progress, log, served), log
    )


def keep_and_publish(
    store: AdapterStore,
    names: Sequence[str],
    fingerprint: str,
    make: Callable[[], Candidate],
    log: Path | None = None,
) -> dict[str, Any]:
    """Make a candidate, unless that was done already, keep it, and publish it if its check was passed.

    Args:
        store, names: see ``adapt_and_publish``, as what is returned and raised.
        fingerprint: the same for two candidates that are made alike of the same.
        make: makes it.
        log: of the making, for a run that is broken off; a copy goes beside the candidate.
    """
    label = names[0]
    versions = {name: found for name in names if (found := store.find(name, fingerprint))}
    known = label in versions
    if len(versions) < len(names):
        result = make()
        for name in set(names) - set(versions):
            record = {**result.record, "reason": result.check.sentence()}
            versions[name] = store.add(name, result.adapter, record, result.check.status, log)
        if log:
            log.unlink(missing_ok=True)
    for name, version in versions.items():
        record = store.record(name, version)
        if record["status"] == "accepted" and not store.was_served(name, version):  # A roll-back is not undone.
            store.publish(name, version)
    record = store.record(label, versions[label])
    again = " Nothing has changed since: the same labels and settings gave this version before." if known else ""
    return {
        "version": record["version"],
        "status": "published" if store.published(label) == versions[label] else record["status"],
        **{key: record[key] for key in _TOLD if key in record},
        **(record["verdict"] or {}),
        "against_served": record["against_served"],
        "reason": record["reason"] + again,
    }


def _served(store: AdapterStore, label: str, black_box: BlackBox) -> Served | None:
    """What serves a label, if it can be read. The shared adapter's gain was found on other labels, and says nothing."""
    found = store.served(label, black_box.capabilities.weights_sha256)
    if found is None:
        return None
    try:
        served = store.load(*found)
    except BapsError as error:  # Training anew is what mends it.
        logger.warning("%s", error)
        return None
    own = found[0] == label
    return Served(served.adapter, served.record if own else {**served.record, "verdict": None})
