"""Claims stay within their error budget, and are kept only with their evidence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from baps.errors import BapsError
from baps.evaluation.claims import (
    ERROR_BUDGET,
    MIN_PATIENTS,
    ClaimLedger,
    confidence_sequence,
    flip_statistic,
    log_e_value,
    spent_ledger,
)
from baps.evaluation.evidence import EvidenceStream

CLEAR = [0.2, 0.1, 0.25, 0.3, 0.15, 0.2, 0.1, 0.3]


def stream(differences: Sequence[float], candidate: str = "v0001") -> EvidenceStream:
    made = EvidenceStream(candidate, "sam")
    for number, difference in enumerate(differences):
        made.add(str(number), difference)
    return made


def test_a_clear_gain_on_eight_patients_is_claimed() -> None:
    ledger, evidence = ClaimLedger(), stream(CLEAR)
    ledger.update(evidence)
    assert ledger.holds(evidence)
    assert 0 < ledger.spent <= ERROR_BUDGET


def test_seven_patients_prove_nothing() -> None:
    ledger, evidence = ClaimLedger(), stream(CLEAR[:7])
    ledger.update(evidence)
    assert not ledger.holds(evidence)
    assert ledger.spent == 0


def test_small_gains_that_look_alike_are_not_claimed() -> None:
    ledger, evidence = ClaimLedger(), stream([0.03] * 30)
    ledger.update(evidence)
    assert not ledger.holds(evidence)


def test_of_all_combinations_of_signs_only_the_budget_is_claimed() -> None:
    """Exactly: every combination is a label whose candidate is no better. All of them look at 8 and at 10 patients."""
    sizes = np.random.default_rng(3).uniform(0.05, 0.3, 10)
    claimed = 0
    signs = list(product((1, -1), repeat=10))
    for combination in signs:
        ledger, differences = ClaimLedger(), sizes * combination
        first = stream(differences[:8])
        ledger.update(first)
        second = stream(0.7 * differences, "v0002")
        second.add("late", 0.0)
        ledger.update(second, [first])
        claimed += ledger.holds(first) or ledger.holds(second)
        assert ledger.spent <= ERROR_BUDGET
    assert 0.02 <= claimed / len(signs) <= ERROR_BUDGET


def test_a_training_without_new_patients_spends_and_claims_nothing() -> None:
    ledger = ClaimLedger()
    ledger.update(stream([0.1, -0.1] * 4))
    spent = ledger.spent
    for number in range(50):
        better = stream(CLEAR, f"v{number}")
        ledger.update(better)
        assert not ledger.holds(better)
    assert ledger.spent == spent


def test_the_budget_is_kept_over_restarts() -> None:
    rng = np.random.default_rng(5)
    without, restarted = ClaimLedger(), ClaimLedger()
    for count in range(3, 40):
        evidence = stream(rng.normal(0.05, 0.15, count).clip(-1, 1), f"v{count}")
        without.update(evidence)
        restarted.update(evidence)
        restarted = ClaimLedger.from_dict(json.loads(json.dumps(restarted.to_dict(), allow_nan=False)))
        assert restarted.to_dict() == without.to_dict()
        assert restarted.holds(evidence) == without.holds(evidence)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.floats(-1, 1), min_size=1, max_size=24), min_size=1, max_size=8))
def test_the_budget_is_never_exceeded(lives: list[list[float]]) -> None:
    ledger, spent = ClaimLedger(), 0.0
    for number, differences in enumerate(lives):
        ledger.update(stream(differences, f"v{number}"))
        assert spent <= ledger.spent <= ERROR_BUDGET + 1e-12
        spent = ledger.spent


def test_a_claim_goes_with_its_evidence() -> None:
    ledger, evidence = ClaimLedger(), stream(CLEAR)
    ledger.update(evidence)
    evidence.remember_label("3", "volume", "label")
    assert evidence.drop_changed({"volume": "another label"}) == 1
    assert not ledger.holds(evidence)
    assert not ledger.holds(stream([]))


def test_a_claim_goes_if_the_labels_turn_out_otherwise() -> None:
    ledger, evidence = ClaimLedger(), stream(CLEAR)
    ledger.update(evidence)
    evidence.add("0", -0.9)
    assert not ledger.holds(evidence)


def test_a_retracted_claim_does_not_return() -> None:
    ledger, evidence = ClaimLedger(), stream(CLEAR)
    ledger.update(evidence)
    ledger.retract(evidence)
    for number in range(8, 40):
        evidence.add(str(number), 0.3)
        ledger.update(evidence)
    assert not ledger.holds(evidence)


def test_another_model_starts_without_a_claim() -> None:
    ledger, evidence = ClaimLedger(), stream(CLEAR)
    ledger.update(evidence)
    other = EvidenceStream("v0001", "another model")
    for patient, difference in zip(evidence.patients, CLEAR, strict=True):
        other.add(patient, difference)
    ledger.update(other)
    assert not ledger.holds(other)


def test_late_candidates_are_claimed_by_the_anytime_valid_test() -> None:
    ledger = ClaimLedger()
    for count in range(8, 20):
        ledger.update(stream([0.1, -0.1] * (count // 2), f"v{count}"))
    rng = np.random.default_rng(0)
    good = stream([])
    for number in range(60):
        good.add(str(number), float(rng.normal(0.15, 0.1)))
        ledger.update(good)
    assert ledger.holds(good)
    assert ledger.to_dict()["claims"][good.key]["method"] == "anytime t-test"


def test_a_lost_ledger_claims_nothing_on_few_patients() -> None:
    ledger, evidence = spent_ledger(), stream(CLEAR * 2)
    ledger.update(evidence)
    assert not ledger.holds(evidence)
    assert ClaimLedger.from_dict(json.loads(json.dumps(ledger.to_dict()))).to_dict() == ledger.to_dict()


@pytest.mark.parametrize("key", ["patients_seen", "looks", "anytime_ranks", "claims", "spent", "retracted"])
@pytest.mark.parametrize("damage", [None, 3, "x", [{"patients_seen": 8}], {"v": {}}])
def test_a_damaged_ledger_is_refused(key: str, damage: object) -> None:
    ledger = ClaimLedger()
    ledger.update(stream(CLEAR))
    with pytest.raises(BapsError, match="counts as spent"):
        ClaimLedger.from_dict({**ledger.to_dict(), key: damage})


def test_patients_needed_lead_to_the_next_look() -> None:
    ledger = ClaimLedger()
    assert ledger.patients_needed(stream([])) is None
    assert ledger.patients_needed(stream([-0.1, -0.2, -0.1])) is None
    evidence = stream([0.2, 0.1, 0.15, 0.2])
    ledger.update(evidence)
    assert ledger.patients_needed(evidence) == MIN_PATIENTS - 4


def test_the_flip_statistic_grows_with_t() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(0.05, 0.1, (50, 9))
    t = stats.ttest_1samp(samples, 0, axis=1).statistic
    assert stats.spearmanr(t, [flip_statistic(sample) for sample in samples]).statistic == pytest.approx(1)
    assert flip_statistic(np.zeros(4)) == 0


def test_the_e_value_is_the_bayes_factor_of_a_normal_effect() -> None:
    differences = np.random.default_rng(2).normal(0.1, 0.3, 12)
    t, count = stats.ttest_1samp(differences, 0).statistic, len(differences)
    mixture, _ = integrate.quad(
        lambda effect: stats.nct.pdf(t, count - 1, np.sqrt(count) * effect) * stats.norm.pdf(effect), -6, 6
    )
    assert log_e_value(differences) == pytest.approx(np.log(mixture / stats.t.pdf(t, count - 1)), rel=1e-5)


def test_the_e_value_of_nothing_better_is_nothing() -> None:
    assert log_e_value(np.array([0.2])) == -np.inf
    assert log_e_value(np.array([-0.2, -0.1, 0.1])) == -np.inf


def test_the_confidence_sequence_inverts_the_e_value() -> None:
    differences = np.random.default_rng(4).normal(0.2, 0.3, 15)
    count, low = next((n, low) for n, (low, _) in enumerate(confidence_sequence(differences), 1) if low > -1)
    assert log_e_value(differences[:count] - low) == pytest.approx(np.log(1 / ERROR_BUDGET), rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1), max_size=40))
def test_the_confidence_sequence_has_the_mean_and_a_width(differences: list[float]) -> None:
    """Patients who look alike, or a change, make no empty interval."""
    intervals = confidence_sequence(np.array(differences))
    assert len(intervals) == len(differences)
    for count, (low, high) in enumerate(intervals, 1):
        assert -1 <= low < high <= 1
        assert low <= np.mean(differences[:count]) + 1e-9
        assert high >= np.mean(differences[:count]) - 1e-9
    assert confidence_sequence(np.zeros(8))[-1][1] > 0.05


def test_the_confidence_sequence_covers_the_gain_after_every_patient() -> None:
    rng = np.random.default_rng(6)
    misses = sum(
        not all(low <= 0.1 <= high for low, high in confidence_sequence(rng.normal(0.1, 0.1, 40))) for _ in range(300)
    )
    assert misses / 300 <= ERROR_BUDGET + 0.02


def test_of_candidates_that_were_trained_on_the_same_patients_only_the_first_is_looked_at() -> None:
    """Otherwise a person could train until one looks good."""
    ledger = ClaimLedger()
    first, second = stream([0.0] * 7), stream([0.3] * 7, "v0002")
    ledger.update(first)
    ledger.update(second)
    second.add("7", 0.3)
    ledger.update(second)
    assert not ledger.holds(second)
    ledger = ClaimLedger.from_dict(json.loads(json.dumps(ledger.to_dict())))
    ledger.update(second)
    assert not ledger.holds(second)
    third = stream([0.3] * 9, "v0003")
    ledger.update(third)
    assert ledger.holds(third)
