"""The evidence on disk publishes and withdraws versions, and survives kills, damage and choices of people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from baps.adapters.adapter import identity_adapter
from baps.errors import BapsError
from baps.evaluation.gate import State
from baps.registry import evidence as module
from baps.registry.evidence import change_evidence, read_evidence, read_statuses, record_choice
from baps.registry.store import AdapterStore

GOOD = {f"p{number}": 0.1 + 0.02 * number for number in range(8)}
BAD = {f"p{number}": -0.1 - 0.02 * number for number in range(8)}


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "adapters")


def add(store: AdapterStore, differences: Mapping[str, float] | None, weights: str = "sam") -> str:
    """Store a version with what its training measured."""
    adapter = identity_adapter()
    record: dict[str, Any] = {"adapter": adapter.to_dict(), "black_box": {"weights_sha256": weights}}
    if differences is not None:
        record["scores"] = {"differences": dict(differences)}
    return store.add("spleen", adapter, record)


def judge(store: AdapterStore, version: str, weights: str = "sam", serve_trials: bool = True) -> None:
    with change_evidence(store, "spleen", (weights,), serve_trials) as evidence:
        evidence.open(store, "spleen", version, weights)


def test_what_is_better_is_published_and_what_turns_harmful_is_withdrawn(store: AdapterStore) -> None:
    version = add(store, GOOD)
    judge(store, version)
    assert store.published("spleen") == version
    assert read_statuses(store, "spleen")[version].state is State.PUBLISHED
    for number in range(8):
        with change_evidence(store, "spleen", ("sam",)) as evidence:
            evidence.gate.open(version, "sam").add_volume(f"late {number}", "image", "label", -0.2)
    assert store.published("spleen") is None
    assert read_statuses(store, "spleen")[version].state is State.WITHDRAWN
    states = [(entry["state"], entry["serves"]) for entry in read_evidence(store, "spleen").history]
    assert (states[0], states[-1]) == (("published", True), ("withdrawn", False))


def test_what_is_worse_is_not_served(store: AdapterStore) -> None:
    version = add(store, BAD)
    judge(store, version)
    assert store.published("spleen") is None
    assert read_statuses(store, "spleen")[version].state is State.REJECTED


def test_a_trial_in_the_shadow_is_not_served(store: AdapterStore) -> None:
    version = add(store, dict(list(GOOD.items())[:5]))
    judge(store, version, serve_trials=False)
    assert store.published("spleen") is None
    judge(store, version)
    assert store.published("spleen") == version


@pytest.mark.parametrize("choice", ["withdraw", "roll back", "publish another"])
def test_a_choice_of_a_person_is_kept_until_the_next_training(store: AdapterStore, choice: str) -> None:
    first, second = add(store, {}), add(store, GOOD)
    judge(store, second)
    assert store.published("spleen") == second
    with record_choice(store, "spleen"):
        if choice == "withdraw":
            store.withdraw("spleen")
        elif choice == "roll back":
            store.roll_back("spleen")
        else:
            store.publish("spleen", first)
    chosen = store.published("spleen")
    for number in range(3):
        with change_evidence(store, "spleen", ("sam",)) as evidence:
            evidence.gate.open(second, "sam").add_volume(f"late {number}", "image", "label", 0.3)
        assert store.published("spleen") == chosen
    third = add(store, {**GOOD, "p9": 0.3})
    judge(store, third)
    assert store.published("spleen") == third


def test_the_same_evidence_does_not_undo_a_rollback(store: AdapterStore) -> None:
    version = add(store, GOOD)
    judge(store, version)
    with record_choice(store, "spleen"):
        store.roll_back("spleen")
    judge(store, version)
    assert store.published("spleen") is None


def test_an_adapter_of_an_earlier_release_serves_until_something_better_comes(store: AdapterStore) -> None:
    old = add(store, None)
    store.publish("spleen", old)
    judge(store, add(store, BAD))
    assert store.published("spleen") == old
    assert read_statuses(store, "spleen")[old].sentence() == "candidate: no patient has judged it yet"
    better = add(store, GOOD)
    judge(store, better)
    assert store.published("spleen") == better


def test_another_model_has_evidence_of_its_own_and_leaves_what_is_published(store: AdapterStore) -> None:
    version = add(store, GOOD)
    judge(store, version)
    with change_evidence(store, "spleen", ("another model",)):
        pass
    assert store.published("spleen") == version
    other = add(store, GOOD, "another model")
    judge(store, other, "another model")
    assert store.served("spleen", "another model") == ("spleen", other)
    # Back to the first model: its version is served again.
    with change_evidence(store, "spleen", ("sam",)):
        pass
    assert set(read_statuses(store, "spleen")) == {version, other}


@pytest.mark.parametrize(
    "content",
    ["", "rubbish", "[]", "{}", '{"gate": {"streams": 3}}', "[" * 100_000, '{"gate": {"serves": {"sam": []}}}', None],
)
def test_damaged_evidence_is_measured_anew_and_its_claims_are_gone(store: AdapterStore, content: str | None) -> None:
    version = add(store, GOOD)
    judge(store, version)
    file = store.evidence_file("spleen")
    if content is None:
        record = json.loads(file.read_text())
        record["gate"]["streams"][0]["patients"][0][1] = 7
        content = json.dumps(record)
    file.write_text(content)
    assert read_evidence(store, "spleen").notes
    with change_evidence(store, "spleen", ("sam",)):
        pass
    status = read_statuses(store, "spleen")[version]
    assert (status.patients, status.serves, store.published("spleen")) == (8, True, version)
    assert not read_evidence(store, "spleen").notes


def test_a_process_that_dies_before_it_publishes_is_finished_by_the_next(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = add(store, GOOD)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(AdapterStore, "publish", die)
        with pytest.raises(KeyboardInterrupt):
            judge(store, version)
    assert store.published("spleen") is None
    with change_evidence(store, "spleen", ("sam",)):
        pass
    assert store.published("spleen") == version


def test_a_person_overrules_what_a_process_that_died_would_have_published(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = add(store, GOOD), add(store, {patient: gain + 0.1 for patient, gain in GOOD.items()})
    judge(store, first)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(AdapterStore, "publish", die)
        with pytest.raises(KeyboardInterrupt):
            judge(store, second)
    with record_choice(store, "spleen"):
        store.withdraw("spleen")
    with change_evidence(store, "spleen", ("sam",)):
        pass
    assert store.published("spleen") is None


def test_a_model_that_comes_back_is_served_by_its_adapter_again(store: AdapterStore) -> None:
    first, second = add(store, GOOD), add(store, GOOD, "another model")
    judge(store, first)
    judge(store, second, "another model")
    assert store.published("spleen") == second
    with change_evidence(store, "spleen", ("sam",)):
        pass
    assert store.served("spleen", "sam") == ("spleen", first)


@pytest.mark.parametrize("damage", ["removed", "record", "adapter"])
def test_where_what_serves_is_damaged_the_version_before_it_serves_only_while_it_helps(
    store: AdapterStore, damage: str
) -> None:
    first, second = add(store, GOOD), add(store, {patient: gain + 0.1 for patient, gain in GOOD.items()})
    judge(store, first)
    judge(store, second)
    assert store.published("spleen") == second
    folder = store.root / "label-spleen" / second
    if damage == "removed":
        folder.rename(store.root / "gone")
    else:
        (folder / ("record.json" if damage == "record" else "adapter.safetensors")).write_text("rubbish")
    with change_evidence(store, "spleen", ("sam",)) as evidence:
        assert [stream.candidate for stream in evidence.active_streams()] == [first]
    assert store.served("spleen", "sam") == ("spleen", first)
    for number in range(10):
        with change_evidence(store, "spleen", ("sam",)) as evidence:
            evidence.active_streams()[0].add_volume(f"late {number}", "image", "label", -0.3)
    assert store.served("spleen", "sam") is None


def test_a_disk_that_does_not_answer_changes_nothing(store: AdapterStore, monkeypatch: pytest.MonkeyPatch) -> None:
    version = add(store, GOOD)
    judge(store, version)
    before = store.evidence_file("spleen").read_text()

    def fail(*_: object, **__: object) -> str:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", fail)
        with pytest.raises(BapsError, match="Input/output error"), change_evidence(store, "spleen", ("sam",)):
            pass
    assert (store.evidence_file("spleen").read_text(), store.published("spleen")) == (before, version)


def test_evidence_that_was_deleted_has_no_budget_left(store: AdapterStore) -> None:
    version = add(store, GOOD)
    judge(store, version)
    store.evidence_file("spleen").unlink()
    judge(store, add(store, {**GOOD, "p9": 0.3}))
    statuses = read_statuses(store, "spleen")
    assert statuses[version].state is not State.PUBLISHED
    assert not any(status.state is State.PUBLISHED for status in statuses.values())
    assert read_evidence(store, "spleen").gate.ledger.spent > 0.04


def test_a_full_disk_changes_nothing(store: AdapterStore, monkeypatch: pytest.MonkeyPatch) -> None:
    version = add(store, GOOD)
    judge(store, version)
    before = store.evidence_file("spleen").read_text()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "atomic_write", full)
    with pytest.raises(BapsError, match="Free some space"), change_evidence(store, "spleen", ("sam",)) as evidence:
        for number in range(20):
            evidence.gate.open(version, "sam").add_volume(f"late {number}", "image", "label", -0.3)
    assert (store.evidence_file("spleen").read_text(), store.published("spleen")) == (before, version)


def test_a_version_that_was_removed_is_not_published(store: AdapterStore) -> None:
    version = add(store, GOOD)
    judge(store, version)
    store.withdraw("spleen")
    (store.root / "label-spleen" / version).rename(store.root / "gone")
    with change_evidence(store, "spleen", ("sam",)) as evidence:
        evidence.gate.serve(version, "sam")
    assert store.published("spleen") is None


@pytest.mark.parametrize("differences", [{"p0": 3}, {"p0": None}, {"p0": "much"}, [1], 5])
def test_a_damaged_record_of_a_training_gives_no_evidence(store: AdapterStore, differences: Any) -> None:
    adapter = identity_adapter()
    record = {
        "adapter": adapter.to_dict(),
        "black_box": {"weights_sha256": "sam"},
        "scores": {"differences": differences},
    }
    version = store.add("spleen", adapter, record)
    judge(store, version)
    assert read_statuses(store, "spleen")[version].state is State.CANDIDATE
