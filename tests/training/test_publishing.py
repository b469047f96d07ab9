"""Training at a site over weeks, on a cheap black box that works better on brighter images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from baps.adapters.adapter import Adapter
from baps.adapters.visual_prompt import build_visual_prompt
from baps.errors import BudgetSpentError
from baps.evaluation.scoring import score_slices
from baps.evaluation.slices import LabelledSlice
from baps.evaluation.splits import patient_hash
from baps.registry.evidence import read_statuses, record_choice
from baps.registry.store import SHARED, AdapterStore
from baps.training.publishing import adapt_and_publish
from baps.training.settings import AdaptationSettings

Slices = Callable[..., dict[str, list[LabelledSlice]]]
NewBox = Callable[..., Any]
SETTINGS = AdaptationSettings(
    max_images=700, batch_size=8, curve_points=2, curve_slices=4, click_sets=2, check_slices=3, learning_rate=0.05,
    zoom="none", head="none",
)  # fmt: skip
WEAK = replace(SETTINGS, max_images=1000, learning_rate=0.02, condition="click")
"""Learns little; and of another kind than the rest, so it does not go on from what is served."""


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "adapters")


def _brighter(by: float) -> Adapter:
    """Make an adapter that adds a fraction of white; from 0.25 dim organs exceed the black box's threshold."""
    visual_prompt = build_visual_prompt("basis")
    with torch.no_grad():
        visual_prompt.head.bias.view(3, 4)[:, 0] = by  # type: ignore[union-attr, operator]
    return Adapter(visual_prompt)


def _serve(
    store: AdapterStore,
    black_box: Any,
    adapter: Adapter,
    trained_on: list[str],
    label: str = "spleen",
) -> str:
    """Publish an adapter as if it had been trained on some patients."""
    record = {
        "adapter": adapter.to_dict(),
        "black_box": {"name": "brightness", "weights_sha256": black_box.capabilities.weights_sha256},
        "seen_patients": [patient_hash(patient) for patient in trained_on],
        "fingerprint": "of what is served",
    }
    version = store.add(label, adapter, record)
    store.publish(label, version)
    return version


def _dice(adapter: Adapter | None, slices: list[LabelledSlice], new_black_box: NewBox) -> float:
    return float(score_slices(new_black_box(), adapter, slices, "click", 99, 3).mean())


@pytest.mark.parametrize(("patients", "status"), [(6, "on trial"), (8, "published")])
def test_better_candidate_serves(
    store: AdapterStore, new_black_box: NewBox, dim_slices: Slices, patients: int, status: str
) -> None:
    black_box, slices = new_black_box(), dim_slices(patients)
    outcome = adapt_and_publish(store, ("spleen",), black_box, slices, SETTINGS)
    assert (outcome["version"], outcome["status"], outcome["serves"]) == ("v0001", status, True)
    assert store.published("spleen") == "v0001"
    record = store.record("spleen", "v0001")
    assert (record["status"], record["started_from"], record["against_served"]) == ("candidate", None, None)
    assert outcome["reason"].startswith(f"{status}: {patients} patients, likely +.")
    assert outcome["reason"].endswith(record["reason"])
    assert f"over {patients} patients." in record["reason"]
    assert outcome["gain"] == record["verdict"]["gain"] > 0.5
    assert outcome["black_box_images"] == record["black_box_images"] == black_box.images_queried <= 700
    assert outcome["curve"] == record["curve"]
    assert store.versions(SHARED) == []
    assert not store.log("spleen").exists()
    assert (store.root / "label-spleen" / "v0001" / "training.jsonl").exists()
    served = store.load("spleen", "v0001").adapter
    assert _dice(served, slices["patient 0"], new_black_box) > _dice(None, slices["patient 0"], new_black_box) + 0.5


def test_one_training_for_a_label_and_for_clicks_without_one(
    store: AdapterStore, new_black_box: NewBox, dim_slices: Slices
) -> None:
    black_box = new_black_box()
    adapt_and_publish(store, ("spleen", SHARED), black_box, dim_slices(6), SETTINGS)
    assert black_box.images_queried <= 700
    assert (store.published("spleen"), store.published(SHARED)) == ("v0001", "v0001")
    first, second = (store.load(label, "v0001").adapter.state_dict() for label in ("spleen", SHARED))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("names", [("spleen",), ("spleen", SHARED)])
def test_repeated_training_queries_nothing(
    store: AdapterStore, new_black_box: NewBox, dim_slices: Slices, names: tuple[str, ...]
) -> None:
    """This also holds after a patient was added."""
    for patients, version in ((4, "v0001"), (5, "v0002"), (8, "v0003")):
        first = adapt_and_publish(store, names, new_black_box(), dim_slices(patients), SETTINGS)
        assert first["version"] == version
        black_box = new_black_box()
        black_box.budget = 0
        again = adapt_and_publish(store, names, black_box, dim_slices(patients), SETTINGS)
        assert again == {**first, "reason": again["reason"]}
        assert again["reason"].startswith(first["reason"])
        assert "Nothing has changed since" in again["reason"]
    assert [len(store.versions(name)) for name in names] == [3] * len(names)


def test_candidate_no_better_than_unadapted_is_not_served(
    store: AdapterStore, new_black_box: NewBox, dim_slices: Slices
) -> None:
    """The organs are bright on a dark background, so that the unadapted model finds them."""
    slices = {
        patient: [
            replace(piece, image=np.repeat((piece.target * np.uint8(230))[..., None], 3, axis=-1)) for piece in pieces
        ]
        for patient, pieces in dim_slices(6).items()
    }
    outcome = adapt_and_publish(store, ("spleen",), new_black_box(), slices, SETTINGS)
    assert (outcome["version"], outcome["serves"], outcome["before"]) == ("v0001", False, 1)
    assert store.published("spleen") is None
    assert store.served("spleen", *new_black_box().capabilities.identity) is None


def test_candidate_of_one_patient_is_not_served(store: AdapterStore, new_black_box: NewBox, dim_slices: Slices) -> None:
    outcome = adapt_and_publish(store, ("spleen",), new_black_box(), dim_slices(1), SETTINGS)
    assert (outcome["status"], outcome["serves"]) == ("candidate", False)
    assert "gain" not in outcome
    assert "Label a volume of another patient." in outcome["reason"]
    assert store.published("spleen") is None


def test_candidate_worse_than_the_served_version_is_not_served(
    store: AdapterStore, new_black_box: NewBox, dim_slices: Slices
) -> None:
    slices = dim_slices(6)
    alone = adapt_and_publish(AdapterStore(store.root / "other"), ("spleen",), new_black_box(), slices, WEAK)
    assert alone["serves"]
    _serve(store, new_black_box(), _brighter(1 / 3), [])
    outcome = adapt_and_publish(store, ("spleen",), new_black_box(), slices, WEAK)
    assert (outcome["version"], outcome["serves"]) == ("v0002", False)
    assert outcome["gain"] > 0.05
    assert outcome["against_served"]["gain"] < 0
    assert store.published("spleen") == "v0001"
    assert read_statuses(store, "spleen")["v0001"].patients == 6


def test_trials_in_the_shadow_serve_nothing(store: AdapterStore, new_black_box: NewBox, dim_slices: Slices) -> None:
    outcome = adapt_and_publish(store, ("spleen",), new_black_box(), dim_slices(6), SETTINGS, serve_trials=False)
    assert (outcome["status"], outcome["serves"], store.published("spleen")) == ("on trial", False, None)


@pytest.mark.parametrize("seed", range(3))
def test_served_version_never_gets_worse_over_weeks(
    store: AdapterStore, new_black_box: NewBox, dim_slices: Slices, seed: int
) -> None:
    """Patients are added; some trainings help, some have little effect, and some harm."""
    random = np.random.default_rng(seed)
    kinds = [SETTINGS, WEAK, replace(SETTINGS, learning_rate=3.0, max_images=200), replace(SETTINGS, max_images=300)]
    served: list[str | None] = []
    for patients in (2, 3, 5, 6, 8, 8):
        settings = replace(kinds[random.integers(4)], seed=int(random.integers(100)))
        slices = dim_slices(patients)
        before = store.published("spleen")
        outcome = adapt_and_publish(store, ("spleen",), new_black_box(), slices, settings)
        after, record = store.published("spleen"), store.record("spleen", outcome["version"])
        served.append(after)
        assert (after == outcome["version"]) == outcome["serves"]
        assert after in (before, outcome["version"], None)
        if after in (before, None):
            continue
        assert record["verdict"]["gain"] > 0
        if record["against_served"]:
            knew = store.record("spleen", before)["seen_patients"] if before else []
            assert not set(record["scores"]["served"]) & set(knew)
    assert any(served)


def test_rollback_is_not_undone(store: AdapterStore, new_black_box: NewBox, dim_slices: Slices) -> None:
    slices = dim_slices(6)
    second = replace(SETTINGS, seed=1)
    for settings in (SETTINGS, second):
        adapt_and_publish(store, ("spleen",), new_black_box(), slices, settings)
    for version in ("v0001", "v0002"):
        with record_choice(store, "spleen"):
            store.publish("spleen", version)
    with record_choice(store, "spleen"):
        store.roll_back("spleen")
    assert store.published("spleen") == "v0001"
    for settings, version in ((SETTINGS, "v0001"), (second, "v0002")):
        outcome = adapt_and_publish(store, ("spleen",), new_black_box(), slices, settings)
        assert (outcome["version"], store.published("spleen")) == (version, "v0001")
    with record_choice(store, "spleen"):
        store.withdraw("spleen")
    for settings in (SETTINGS, second):
        outcome = adapt_and_publish(store, ("spleen",), new_black_box(), slices, settings)
        assert not outcome["serves"]
        assert store.published("spleen") is None


def test_fifth_patient_judges_the_served_adapter_and_training_continues(
    store: AdapterStore, new_black_box: NewBox, dim_slices: Slices
) -> None:
    four = {patient: pieces for patient, pieces in dim_slices(5).items() if patient != "patient 2"}
    first = adapt_and_publish(store, ("spleen",), new_black_box(), four, replace(SETTINGS, max_images=2500))
    assert first["serves"]
    black_box = new_black_box()
    outcome = adapt_and_publish(store, ("spleen",), black_box, dim_slices(5), SETTINGS)
    record = store.record("spleen", outcome["version"])
    assert sorted(record["training_patients"]) == sorted(map(patient_hash, dim_slices(5)))
    assert list(record["scores"]["served"]) == [patient_hash("patient 2")]
    assert len(record["scores"]["candidate"]) == 5
    assert record["started_from"] == store.record("spleen", "v0001")["fingerprint"]
    last_run = outcome["curve"][-SETTINGS.curve_points - 1 :]
    assert last_run[0][1] > 0.8  # It started where the other one ended.
    assert outcome["against_served"]["count"] == 3
    assert black_box.images_queried <= SETTINGS.max_images


def test_training_starts_anew_if_patients_that_judge_were_trained_on(
    store: AdapterStore, new_black_box: NewBox, dim_slices: Slices
) -> None:
    slices = dim_slices(6)
    _serve(store, new_black_box(), _brighter(1 / 3), list(slices))
    outcome = adapt_and_publish(store, ("spleen",), new_black_box(), slices, SETTINGS)
    assert outcome["curve"][0][1] < 0.1
    assert outcome["against_served"] is None


def test_training_from_another_version_starts_anew(
    store: AdapterStore, new_black_box: NewBox, dim_slices: Slices
) -> None:
    """The training was interrupted, and meanwhile another version was published."""
    slices = dim_slices(6)

    def broken() -> None:
        black_box = new_black_box()
        black_box.budget = 300
        with pytest.raises(BudgetSpentError):
            adapt_and_publish(store, ("spleen",), black_box, slices, SETTINGS)

    broken()
    assert store.log("spleen").exists()
    assert store.versions("spleen") == []
    _serve(store, new_black_box(), _brighter(0.28), [])
    outcome = adapt_and_publish(store, ("spleen",), new_black_box(), slices, SETTINGS)
    assert outcome["replayed_images"] == 0
    assert store.record("spleen", outcome["version"])["started_from"] == "of what is served"


def test_interrupted_training_resumes(store: AdapterStore, new_black_box: NewBox, dim_slices: Slices) -> None:
    black_box = new_black_box()
    black_box.budget = 300
    with pytest.raises(BudgetSpentError):
        adapt_and_publish(store, ("spleen",), black_box, dim_slices(6), SETTINGS)
    outcome = adapt_and_publish(store, ("spleen",), new_black_box(), dim_slices(6), SETTINGS)
    assert outcome["replayed_images"] == black_box.images_queried > 200
    assert outcome["serves"]


@pytest.mark.parametrize("why", ["other weights", "broken"])
def test_training_starts_anew_from_an_unusable_adapter(
    store: AdapterStore, new_black_box: NewBox, dim_slices: Slices, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The adapter belongs to another model, or its file is damaged; a new training replaces it."""
    second = new_black_box()
    if why == "other weights":
        second._capabilities = replace(second.capabilities, weights_sha256="c" * 64)
    _serve(store, second, _brighter(1 / 3), [])
    if why == "broken":
        store.file("spleen", "v0001").write_bytes(b"rubbish")
    with caplog.at_level(logging.WARNING):
        outcome = adapt_and_publish(store, ("spleen",), new_black_box(), dim_slices(6), SETTINGS)
    assert store.record("spleen", outcome["version"])["started_from"] is None
    assert outcome["against_served"] is None
    assert outcome["curve"][0][1] < 0.1
    assert outcome["serves"]
    assert ("v0001 of the adapter spleen is damaged" in caplog.text) == (why == "broken")


def test_first_candidate_is_compared_with_the_shared_adapter(
    store: AdapterStore, new_black_box: NewBox, dim_slices: Slices
) -> None:
    slices = dim_slices(6)
    _serve(store, new_black_box(), _brighter(1 / 3), [], label=SHARED)
    outcome = adapt_and_publish(store, ("spleen",), new_black_box(), slices, SETTINGS)
    assert store.record("spleen", outcome["version"])["started_from"] == "of what is served"
    assert outcome["against_served"] is not None
    _serve(store, new_black_box(), _brighter(1 / 3), list(slices), label=SHARED)
    outcome = adapt_and_publish(store, ("liver",), new_black_box(), slices, SETTINGS)
    assert outcome["against_served"] is None
    assert outcome["serves"]


def test_progress_is_reported(store: AdapterStore, new_black_box: NewBox, dim_slices: Slices) -> None:
    reports: list[Any] = []
    outcome = adapt_and_publish(store, ("spleen",), new_black_box(), dim_slices(6), SETTINGS, reports.append)
    assert reports[-1].step == reports[-1].steps
    assert reports[-1].images <= outcome["black_box_images"]
