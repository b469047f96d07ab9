"""The Dice that is expected, against means by hand and with evidence that arrives after the training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from baps.evaluation.serving import estimate_gain
from baps.fseft.adapter_file import adapter_record
from baps.fseft.adapters import build_adapter
from baps.fseft.expected_dice import _MEASURED
from baps.fseft.models import load_organ_model
from baps.fseft.predictor import OrganSegmenter
from baps.registry.evidence import change_evidence


def add_version(segmenter: OrganSegmenter, organ: str, before: Mapping[str, float], gain: float, **record: Any) -> str:
    """Store an adapter with what its training measured, which gained the same on every patient."""
    content = {
        "adapter": adapter_record("linear_probe", organ, False, 0),
        "black_box": {"name": "small", "weights_sha256": segmenter.model.sha256},
        "scores": {"unadapted": dict(before), "differences": dict.fromkeys(before, gain)},
        **record,
    }
    adapter = build_adapter("linear_probe", segmenter.model.network, organ)
    return segmenter.store.add(organ, adapter, content)


def test_unadapted_organ_has_the_dice_of_the_patients_of_all_trainings(segmenter: OrganSegmenter) -> None:
    assert segmenter.expected_dice("spleen") is None  # Nothing was measured.
    assert segmenter.expected_dice("heart") is None  # It is unknown.
    add_version(segmenter, "spleen", {"a": 0.4, "b": 0.6}, -0.1)
    add_version(segmenter, "spleen", {"b": 0.6, "c": 0.8}, -0.1)  # None of the versions serves.
    add_version(segmenter, "spleen", {"d": 0.1}, 0, black_box={"name": "small", "weights_sha256": "e" * 64})
    add_version(segmenter, "spleen", {}, 0, scores=None)
    assert segmenter.served("spleen") == ""
    assert segmenter.expected_dice("spleen") == pytest.approx((0.4 + 0.6 + 0.8) / 3)
    assert segmenter.expected_dice("liver") is None


def test_few_patients_of_the_site_do_not_outweigh_what_was_measured_before(
    segmenter: OrganSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_MEASURED, segmenter.model.sha256, {"spleen": 0.9})
    assert segmenter.expected_dice("spleen") == 0.9
    add_version(segmenter, "spleen", {"a": 0.1, "b": 0.2}, -0.1)
    assert segmenter.expected_dice("spleen") == 0.9
    add_version(segmenter, "spleen", {"c": 0.3}, -0.1)
    assert segmenter.expected_dice("spleen") == pytest.approx(0.2)


def test_adapter_has_the_gain_that_all_its_evidence_lets_expect(segmenter: OrganSegmenter) -> None:
    store, identity = segmenter.store, (segmenter.model.sha256,)
    version = add_version(segmenter, "spleen", {"a": 0.5, "b": 0.6}, 0.2)
    with change_evidence(store, "spleen", identity) as evidence:
        evidence.open(store, "spleen", version, *identity)
    assert segmenter.served("spleen") == version
    before = segmenter.expected_dice("spleen")
    assert before == pytest.approx(0.55 + estimate_gain(np.array([0.2, 0.2])).mean)
    with change_evidence(store, "spleen", identity) as evidence:
        stream = evidence.open(store, "spleen", version, *identity)
        for patient in "cdefgh":
            stream.add(patient, 0.02)
    after = segmenter.expected_dice("spleen")
    assert segmenter.served("spleen") == version
    assert after is not None
    assert 0.57 <= after < before  # type: ignore[operator]


def test_adapter_of_a_new_organ_starts_from_the_least_useful_dice(segmenter: OrganSegmenter) -> None:
    version = add_version(segmenter, "heart", {"a": 0.0, "b": 0.0}, 0.3)  # Dice .8, as .5 counts as nothing.
    segmenter.store.publish("heart", version)
    assert segmenter.expected_dice("heart") == pytest.approx(0.5 + estimate_gain(np.array([0.3, 0.3])).mean)


def test_adapter_that_nobody_has_judged_has_no_expected_dice(segmenter: OrganSegmenter) -> None:
    segmenter.store.publish("spleen", add_version(segmenter, "spleen", {}, 0))
    assert segmenter.expected_dice("spleen") is None
    (segmenter.store.evidence_file("spleen")).write_text("junk")
    assert segmenter.expected_dice("spleen") is None


def test_the_bundled_model_was_measured_on_all_its_organs() -> None:
    model = load_organ_model(device="cpu")
    assert set(_MEASURED[model.sha256]) == set(model.network.classes)
