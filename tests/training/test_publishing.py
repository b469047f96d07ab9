"""Learning on site, over weeks, on a cheap black box that a brighter image helps."""

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
from baps.registry.store import SHARED, AdapterStore
from baps.training.publishing import adapt_and_publish
from baps.training.settings import AdaptationSettings

Slices = Callable[..., dict[str, list[LabelledSlice]]]
NewBox = Callable[..., Any]
SETTINGS = AdaptationSettings(
    max_images=700, batch_size=8, curve_points=2, curve_slices=4, click_sets=2, check_slices=3, learning_rate=0.05,
    zoom="none", head="none",
)  # fmt: skip
WEAK = replace(SETTINGS, max_images=260, learning_rate=0.02, condition="click")
"""Learns little; and of another kind than the rest, so it does not go on from what is served."""


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "adapters")


def _brighter(by: float) -> Adapter:
    """Adds a share of white: from 0.25 on dim organs come above the black box's threshold."""
    made = build_visual_prompt("basis")
    with torch.no_grad():
        made.head.bias.view(3, 4)[:, 0] = by  # type: ignore[union-attr, operator]
    return Adapter(made)


def _serve(
    store: AdapterStore,
    black_box: Any,
    adapter: Adapter,
    trained_on: list[str],
    gain: float = 0.1,
    label: str = "spleen",
) -> str:
    """Publish an adapter as if it had been trained on some patients."""
    record = {
        "adapter": adapter.to_dict(),
        "black_box": {"name": "brightness", "weights_sha256": black_box.capabilities.weights_sha256},
        "seen_patients": [patient_hash(patient) for patient in trained_on],
        "fingerprint": "of what is served",
        "verdict": {"gain": gain},
    }
    version = store.add(label, adapter, record, "accepted")
    store.publish(label, version)
    return version


def _dice(adapter: Adapter | None, slices: list[LabelledSlice], new_black_box: NewBox) -> float:
    return float(score_slices(new_black_box(), adapter, slices, "click", 99, 3).mean())


def test_what_is_better_is_published(store: AdapterStore, new_black_box: NewBox, dim_slices: Slices) -> None:
    black_box, slices = new_black_box(), dim_slices(6)
    said = adapt_and_publish(store, ("spleen",), black_box, slices, SETTINGS)
    assert (said["version"], said["status"]) == ("v0001", "published")
    assert store.published("spleen") == "v0001"
    record = store.record("spleen", "v0001")
    assert (record["status"], record["started_from"], record["against_served"]) == ("accepted", None, None)
    assert said["reason"] == record["reason"]
    assert said["reason"].endswith("over 3 slices.")
    assert said["gain"] == record["verdict"]["gain"] > 0.5
    assert said["black_box_images"] == record["black_box_images"] == black_box.images_queried <= 700
    assert said["curve"] == record["curve"]
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
    one, other = (store.load(label, "v0001").adapter.state_dict() for label in ("spleen", SHARED))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("names", [("spleen",), ("spleen", SHARED)])
def test_the_same_again_asks_nothing(
    store: AdapterStore, new_black_box: NewBox, dim_slices: Slices, names: tuple[str, ...]
) -> None:
    """Also after a patient joined, who was not there when the others were shared out."""
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


def test_what_is_no_better_than_the_model_as_it_is_is_kept_and_not_served(
    store: AdapterStore, new_black_box: NewBox, dim_slices: Slices
) -> None:
    """Bright organs on dark ground, which the model finds as it is."""
    slices = {
        patient: [
            replace(piece, image=np.repeat((piece.target * np.uint8(230))[..., None], 3, axis=-1)) for piece in pieces
        ]
        for patient, pieces in dim_slices(6).items()
    }
    said = adapt_and_publish(store, ("spleen",), new_black_box(), slices, SETTINGS)
    assert (said["version"], said["status"], said["before"]) == ("v0001", "rejected", 1)
    assert store.published("spleen") is None
    assert store.served("spleen", *new_black_box().capabilities.identity) is None


def test_of_one_patient_nothing_is_served(store: AdapterStore, new_black_box: NewBox, dim_slices: Slices) -> None:
    said = adapt_and_publish(store, ("spleen",), new_black_box(), dim_slices(1), SETTINGS)
    assert said["status"] == "unverified"
    assert "gain" not in said
    assert "Label a volume of another patient." in said["reason"]
    assert store.published("spleen") is None


def test_what_is_better_than_the_model_but_worse_than_what_is_served_is_refused(
    store: AdapterStore, new_black_box: NewBox, dim_slices: Slices
) -> None:
    slices = dim_slices(6)
    alone = adapt_and_publish(AdapterStore(store.root / "other"), ("spleen",), new_black_box(), slices, WEAK)
    assert alone["status"] == "published"
    _serve(store, new_black_box(), _brighter(1 / 3), [])
    said = adapt_and_publish(store, ("spleen",), new_black_box(), slices, WEAK)
    assert (said["version"], said["status"]) == ("v0002", "rejected")
    assert said["gain"] > 0.05
    assert said["against_served"]["gain"] < 0
    assert f"Against the served adapter: gain {said['against_served']['gain']:+.3f}." in said["reason"]
    assert store.published("spleen") == "v0001"


def test_where_nobody_is_new_to_what_is_served_a_smaller_gain_is_refused(
    store: AdapterStore, new_black_box: NewBox, dim_slices: Slices
) -> None:
    slices = dim_slices(6)
    _serve(store, new_black_box(), _brighter(1 / 3), list(slices), gain=0.99)
    said = adapt_and_publish(store, ("spleen",), new_black_box(), slices, WEAK)
    assert (said["status"], said["against_served"]) == ("rejected", None)
    assert said["reason"].endswith("The served adapter gained more.")
    assert store.published("spleen") == "v0001"


@pytest.mark.parametrize("seed", range(3))
def test_over_weeks_what_is_served_never_gets_worse_for_those_who_judge(
    store: AdapterStore, new_black_box: NewBox, dim_slices: Slices, seed: int
) -> None:
    """Patients join; some trainings are good, some learn little, and some do harm."""
    random = np.random.default_rng(seed)
    kinds = [SETTINGS, WEAK, replace(SETTINGS, learning_rate=3.0, max_images=200), replace(SETTINGS, max_images=300)]
    statuses = []
    for patients in (2, 3, 5, 6, 8, 8):
        settings = replace(kinds[random.integers(4)], seed=int(random.integers(100)))
        slices = dim_slices(patients)
        before = store.published("spleen")
        said = adapt_and_publish(store, ("spleen",), new_black_box(), slices, settings)
        after, record = store.published("spleen"), store.record("spleen", said["version"])
        statuses.append(said["status"])
        assert (after == said["version"]) == (said["status"] == "published")
        assert after in (before, said["version"])
        if after == before:
            continue
        assert record["verdict"]["gain"] > record["verdict"]["standard_error"]
        if record["against_served"]:
            assert record["against_served"]["gain"] >= 0
            judges = [p for p in slices if patient_hash(p) in record["held_back_patients"]]
            if before and judges:
                knew = store.record("spleen", before)["seen_patients"]
                assert any(patient_hash(p) not in knew for p in judges)
    assert "published" in statuses


def test_a_roll_back_is_not_undone(store: AdapterStore, new_black_box: NewBox, dim_slices: Slices) -> None:
    slices = dim_slices(6)
    other = replace(SETTINGS, seed=1)
    for settings in (SETTINGS, other):
        adapt_and_publish(store, ("spleen",), new_black_box(), slices, settings)
    store.publish("spleen", "v0002")
    store.roll_back("spleen")
    assert store.published("spleen") == "v0001"
    for settings, version in ((SETTINGS, "v0001"), (other, "v0002")):
        said = adapt_and_publish(store, ("spleen",), new_black_box(), slices, settings)
        assert (said["version"], store.published("spleen")) == (version, "v0001")
    store.roll_back("spleen")
    for settings in (SETTINGS, other):
        said = adapt_and_publish(store, ("spleen",), new_black_box(), slices, settings)
        assert said["status"] in ("accepted", "rejected")
        assert store.published("spleen") is None


def test_a_version_that_was_withdrawn_stays_so(store: AdapterStore, new_black_box: NewBox, dim_slices: Slices) -> None:
    adapt_and_publish(store, ("spleen",), new_black_box(), dim_slices(6), SETTINGS)
    store.withdraw("spleen")
    said = adapt_and_publish(store, ("spleen",), new_black_box(), dim_slices(6), SETTINGS)
    assert (said["version"], said["status"], store.published("spleen")) == ("v0001", "accepted", None)


def test_a_fifth_patient_judges_and_what_is_served_is_gone_on_from(
    store: AdapterStore, new_black_box: NewBox, dim_slices: Slices
) -> None:
    four = {patient: pieces for patient, pieces in dim_slices(5).items() if patient != "patient 2"}
    first = adapt_and_publish(store, ("spleen",), new_black_box(), four, replace(SETTINGS, max_images=2500))
    assert first["status"] == "published"
    black_box = new_black_box()
    said = adapt_and_publish(store, ("spleen",), black_box, dim_slices(5), SETTINGS)
    record = store.record("spleen", said["version"])
    assert record["held_back_patients"] == [patient_hash("patient 2")]
    assert sorted(record["training_patients"]) == sorted(map(patient_hash, four))
    assert record["started_from"] == store.record("spleen", "v0001")["fingerprint"]
    assert said["curve"][0][1] > 0.8  # It began where the other ended.
    assert said["against_served"]["count"] == 3
    assert black_box.images_queried <= SETTINGS.max_images
    better = said["against_served"]["gain"] >= 0 and said["gain"] > said["standard_error"]
    assert (said["status"] == "published") == better


def test_where_a_judge_is_known_to_what_is_served_the_training_begins_anew(
    store: AdapterStore, new_black_box: NewBox, dim_slices: Slices
) -> None:
    slices = dim_slices(6)
    _serve(store, new_black_box(), _brighter(1 / 3), list(slices))
    said = adapt_and_publish(store, ("spleen",), new_black_box(), slices, SETTINGS)
    assert said["curve"][0][1] < 0.1
    assert said["against_served"] is None


def test_what_was_begun_from_another_version_is_begun_anew(
    store: AdapterStore, new_black_box: NewBox, dim_slices: Slices
) -> None:
    """It was broken off; meanwhile another version was published."""
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
    said = adapt_and_publish(store, ("spleen",), new_black_box(), slices, SETTINGS)
    assert said["replayed_images"] == 0
    assert store.record("spleen", said["version"])["started_from"] == "of what is served"


def test_what_was_broken_off_goes_on(store: AdapterStore, new_black_box: NewBox, dim_slices: Slices) -> None:
    black_box = new_black_box()
    black_box.budget = 300
    with pytest.raises(BudgetSpentError):
        adapt_and_publish(store, ("spleen",), black_box, dim_slices(6), SETTINGS)
    said = adapt_and_publish(store, ("spleen",), new_black_box(), dim_slices(6), SETTINGS)
    assert said["replayed_images"] == black_box.images_queried > 200
    assert said["status"] == "published"


@pytest.mark.parametrize("why", ["other weights", "broken"])
def test_what_cannot_be_gone_on_from_is_not(
    store: AdapterStore, new_black_box: NewBox, dim_slices: Slices, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An adapter of another model, or one whose file is broken: that is what training mends."""
    other = new_black_box()
    if why == "other weights":
        other._capabilities = replace(other.capabilities, weights_sha256="c" * 64)
    _serve(store, other, _brighter(1 / 3), [])
    if why == "broken":
        store.file("spleen", "v0001").write_bytes(b"rubbish")
    with caplog.at_level(logging.WARNING):
        said = adapt_and_publish(store, ("spleen",), new_black_box(), dim_slices(6), SETTINGS)
    assert store.record("spleen", said["version"])["started_from"] is None
    assert said["against_served"] is None
    assert said["curve"][0][1] < 0.1
    assert said["status"] == "published"
    assert ("v0001 of the adapter spleen is damaged" in caplog.text) == (why == "broken")


@pytest.mark.parametrize("gain", [0.0, 5.0])
def test_a_first_candidate_is_compared_with_the_shared_adapter_that_serves_until_then(
    store: AdapterStore, new_black_box: NewBox, dim_slices: Slices, gain: float
) -> None:
    """The gain that the shared one was published for was found on other labels, and is no bar."""
    slices = dim_slices(6)
    _serve(store, new_black_box(), _brighter(1 / 3), [], gain, label=SHARED)
    said = adapt_and_publish(store, ("spleen",), new_black_box(), slices, SETTINGS)
    assert store.record("spleen", said["version"])["started_from"] == "of what is served"
    assert said["against_served"] is not None
    known = list(slices)
    _serve(store, new_black_box(), _brighter(1 / 3), known, gain, label=SHARED)
    said = adapt_and_publish(store, ("liver",), new_black_box(), slices, SETTINGS)
    assert said["against_served"] is None
    assert said["status"] == "published"


def test_progress_is_told(store: AdapterStore, new_black_box: NewBox, dim_slices: Slices) -> None:
    told: list[Any] = []
    said = adapt_and_publish(store, ("spleen",), new_black_box(), dim_slices(6), SETTINGS, told.append)
    assert told[-1].step == told[-1].steps
    assert told[-1].images <= said["black_box_images"]
