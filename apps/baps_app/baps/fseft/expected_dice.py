"""Estimate the Dice of an organ model on the next patient, from what was measured on patients that it had not seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from baps.errors import BapsError
from baps.evaluation.serving import estimate_gain
from baps.fseft.choices import MIN_DICE
from baps.fseft.models import OrganModel
from baps.registry.evidence import evidence_key, read_evidence
from baps.registry.store import AdapterStore

_MEASURED = {
    "5294c14e9faa4896a7ae56db7a6b6cafff42c827a800cb9aefc31cf34ea64451": {
        "spleen": 0.738,
        "kidney_right": 0.751,
        "kidney_left": 0.778,
        "liver": 0.851,
        "stomach": 0.572,
        "aorta": 0.814,
    }
}
"""Mean Dice of unadapted models by the SHA-256 of their weights. The bundled model: ``baps organs evaluate`` on eight
CT patients of BTCV (8 to 15), whom it has not seen."""

_MIN_PATIENTS = 3
"""Number of a site's own patients from which they count instead of ``_MEASURED``: one may be unusual."""


def expected_dice(store: AdapterStore, model: OrganModel, organ: str, version: str) -> float | None:
    """Estimate the Dice of an organ on the next patient.

    For an adapter, it is the Dice of the unadapted model on the patients of its training, and the gain that all its
    evidence lets expect. For the unadapted model, it is its Dice on the patients of all trainings of the site; where
    they are few, what was measured before.

    Args:
        store: the adapters of the site, with their evidence.
        model: the organ model.
        organ: the organ.
        version: version of the adapter, or "" for the unadapted model.

    Returns:
        0 to 1, or None if nothing was measured.
    """
    if version:
        return _expected_of_adapter(store, model, organ, version)
    measured: dict[str, float] = {}
    for one in store.versions(organ):
        measured |= dict(_unadapted_scores(store, model, organ, one))
    index = model.network.index(organ)
    before = None if index is None else _MEASURED.get(model.sha256, {}).get(model.network.classes[index])
    if measured and (before is None or len(measured) >= _MIN_PATIENTS):
        return float(np.mean(list(measured.values())))
    return before


def _expected_of_adapter(store: AdapterStore, model: OrganModel, organ: str, version: str) -> float | None:
    min_dice = MIN_DICE if model.network.index(organ) is None else 0.0
    unadapted = [max(dice, min_dice) for _, dice in _unadapted_scores(store, model, organ, version)]
    try:
        stream = read_evidence(store, organ).open(store, organ, version, evidence_key(model.sha256))
    except BapsError:
        return None
    if not unadapted or not len(stream):
        return None
    return float(np.clip(np.mean(unadapted) + estimate_gain(stream.differences()).mean, 0, 1))


def _unadapted_scores(store: AdapterStore, model: OrganModel, organ: str, version: str) -> Iterator[tuple[str, float]]:
    """Iterate over what the training of a version measured without an adapter: patient (hashed) and Dice."""
    try:
        record: dict[str, Any] = store.record(organ, version)
        if record["black_box"]["weights_sha256"] == model.sha256:
            yield from [(str(patient), float(dice)) for patient, dice in record["scores"]["unadapted"].items()]
    except (BapsError, KeyError, TypeError, ValueError, AttributeError):  # Damaged, or of an earlier release.
        return
