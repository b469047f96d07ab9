"""The gate tells candidates on trial from published, withdrawn and rejected ones."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np
import pytest

from baps.evaluation.gate import Gate, State, judge_training

GOOD = (0.2, 0.1, 0.25, 0.3, 0.15, 0.2, 0.1, 0.3)


def judge(gate: Gate, candidate: str, differences: Sequence[float], black_box: str = "sam", first: int = 0) -> None:
    stream = gate.open(candidate, black_box)
    for number, difference in enumerate(differences, first):
        if number >= 4:
            stream.add_volume(f"p{number}", "image", "label", float(difference))
        else:
            stream.add(f"p{number}", float(difference))
    gate.update(black_box)


def test_a_candidate_is_on_trial_and_then_published() -> None:
    gate = Gate()
    gate.open("v0001", "sam")
    assert gate.update("sam") is None
    (status,) = gate.statuses("sam")
    assert (status.state, status.serves) == (State.CANDIDATE, False)
    assert status.sentence() == "candidate: no patient has judged it yet"
    judge(gate, "v0001", GOOD[:5])
    (status,) = gate.statuses("sam")
    assert (status.state, status.serves) == (State.ON_TRIAL, True)
    judge(gate, "v0001", GOOD)
    (status,) = gate.statuses("sam")
    assert (status.state, status.serves, status.patients_needed) == (State.PUBLISHED, True, None)


def test_trials_need_not_serve() -> None:
    gate = Gate()
    judge(gate, "v0001", GOOD[:7])
    assert gate.update("sam", serve_trials=False) is None
    gate.open("v0001", "sam").add_volume("p7", "image", "label", GOOD[7])
    assert gate.update("sam", serve_trials=False) == "v0001"


def test_the_sentence_of_a_trial() -> None:
    gate = Gate()
    judge(gate, "v0001", [0.2, 0.0, 0.15, -0.06, 0.1, 0.2])
    (status,) = gate.statuses("sam")
    assert re.fullmatch(
        r"on trial: 6 patients, likely [+]\.\d\d \([+-]\.\d\d to [+]\.\d\d\); "
        r"\d+ more would tell; 1 of 6 lost more than \.05 \(worst -\.06\)",
        status.sentence(),
    )


@pytest.mark.parametrize(("count", "weak"), [(1, True), (2, True), (3, False)])
def test_one_or_two_patients_are_weak_evidence(count: int, weak: bool) -> None:
    gate = Gate()
    judge(gate, "v0001", GOOD[:count])
    (status,) = gate.statuses("sam")
    assert ("weak evidence" in status.sentence()) == weak
    assert f"{count} patient{'s' * (count > 1)}," in status.sentence()


def test_a_candidate_that_loses_is_rejected_and_does_not_serve() -> None:
    gate = Gate()
    judge(gate, "v0001", [-0.1, -0.2, -0.1, -0.15])
    (status,) = gate.statuses("sam")
    assert (status.state, status.serves) == (State.REJECTED, False)


def test_an_adapter_that_turns_harmful_is_withdrawn_and_not_published_again() -> None:
    gate = Gate()
    judge(gate, "v0001", GOOD * 2)
    assert gate.statuses("sam")[0].state is State.PUBLISHED
    judge(gate, "v0001", [-0.1] * 8, first=16)
    assert gate.statuses("sam")[0].state is State.WITHDRAWN
    assert gate.update("sam") is None
    judge(gate, "v0001", [0.3] * 20, first=24)
    assert gate.statuses("sam")[0].state is State.ON_TRIAL


def test_a_published_candidate_stays_active_beside_the_newest_one() -> None:
    gate = Gate()
    judge(gate, "v0001", GOOD)
    judge(gate, "v0002", np.array(GOOD) - 0.05)
    judge(gate, "v0003", np.array(GOOD) - 0.08)
    assert [stream.candidate for stream in gate.active_streams("sam")] == ["v0001", "v0003"]
    states = {status.candidate: status for status in gate.statuses("sam")}
    assert states["v0001"].serves
    assert states["v0002"].state is State.REJECTED
    assert states["v0002"].sentence().endswith("a newer candidate took its place")


def test_a_withdrawn_adapter_does_not_give_way_to_an_older_one() -> None:
    gate = Gate()
    judge(gate, "v0001", GOOD)
    judge(gate, "v0002", np.array(GOOD) + 0.05)
    assert gate.update("sam") == "v0002"
    judge(gate, "v0002", [-0.2] * 10, first=8)
    assert gate.update("sam") is None


def test_a_model_that_changed_starts_a_new_stream() -> None:
    gate = Gate()
    judge(gate, "v0001", GOOD)
    assert gate.update("another model") is None
    assert gate.statuses("another model") == []
    assert len(gate.open("v0001", "another model")) == 0
    gate.update("another model")
    assert gate.statuses("another model")[0].state is State.CANDIDATE
    assert gate.statuses("sam")[0].state is State.PUBLISHED


def test_a_patient_whose_label_changed_takes_the_claim_along() -> None:
    gate = Gate()
    judge(gate, "v0001", GOOD)
    stream = gate.open("v0001", "sam")
    stream.remember_label("p3", "volume", "label")
    stream.drop_changed({"volume": "another label"})
    gate.update("sam")
    assert gate.statuses("sam")[0].state is State.ON_TRIAL


def test_a_gate_reads_back_and_goes_on() -> None:
    gate, restarted, rng = Gate(), Gate(), np.random.default_rng(1)
    for count in range(1, 30):
        differences = rng.normal(0.05, 0.15, count).clip(-1, 1)
        for each in (gate, restarted):
            judge(each, f"v{count // 3}", differences)
        restarted, dropped = Gate.from_dict(json.loads(json.dumps(restarted.to_dict(), allow_nan=False)))
        assert dropped == []
        assert restarted.to_dict() == gate.to_dict()
        assert restarted.statuses("sam") == gate.statuses("sam")


def test_damaged_evidence_is_dropped_with_a_sentence_and_its_claim_with_it() -> None:
    gate = Gate()
    judge(gate, "v0001", GOOD)
    record = gate.to_dict()
    record["streams"][0]["patients"][0] = ["p0", 7, {}]
    again, dropped = Gate.from_dict(record)
    assert len(dropped) == 1
    assert "cannot be read" in dropped[0]
    again.open("v0001", "sam")
    assert again.update("sam") is None
    assert again.statuses("sam")[0].state is State.CANDIDATE
    assert again.ledger.spent == gate.ledger.spent


@pytest.mark.parametrize(
    "damage", [{}, {"ledger": None}, {"ledger": {"looks": 3}, "streams": 4, "serves": 5, "served": 6}]
)
def test_a_lost_budget_counts_as_spent(damage: dict[str, object]) -> None:
    gate, dropped = Gate.from_dict(damage)
    assert any("counts as spent" in sentence for sentence in dropped)
    judge(gate, "v0001", GOOD)
    (status,) = gate.statuses("sam")
    assert status.state is State.ON_TRIAL
    assert status.serves


def test_a_choice_of_a_person_serves_until_the_next_candidate() -> None:
    gate = Gate()
    judge(gate, "v0001", GOOD)
    gate.serve_choice(None, "sam")
    assert gate.update("sam") is None
    judge(gate, "v0001", GOOD, first=8)
    assert gate.serves("sam") is None
    again, _ = Gate.from_dict(json.loads(json.dumps(gate.to_dict())))
    assert again.update("sam") is None
    judge(gate, "v0002", GOOD * 2)
    assert gate.serves("sam") == "v0002"


def test_what_a_person_serves_without_evidence_gives_way_to_a_better_candidate_only() -> None:
    gate = Gate()
    gate.serve_choice("v0001", "sam")
    judge(gate, "v0002", [-0.2] * 6)
    assert gate.serves("sam") == "v0001"
    judge(gate, "v0003", GOOD[:6])
    assert gate.serves("sam") == "v0003"


def test_a_training_is_judged_without_a_store() -> None:
    status = judge_training({f"p{number}": difference for number, difference in enumerate(GOOD)})
    assert (status.state, status.serves) == (State.PUBLISHED, True)
    assert judge_training({}).state is State.CANDIDATE
