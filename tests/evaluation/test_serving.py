"""What serves follows the evidence: five patients move it, and a change of the scanner too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baps.evaluation.evidence import EvidenceStream
from baps.evaluation.serving import choose_served, estimate_gain

ALTERNATING = np.array([0.05, -0.05] * 5)


def stream(candidate: str, differences: Sequence[float]) -> EvidenceStream:
    made = EvidenceStream(candidate, "sam")
    for number, difference in enumerate(differences):
        made.add(str(number), difference)
    return made


def test_the_prior_is_hopeful_and_weak() -> None:
    prior = estimate_gain(np.array([]))
    assert 0.05 < prior.mean < 0.15
    assert prior.low < 0 < prior.high
    assert estimate_gain(np.array([-0.05, -0.1, 0.0, -0.08, -0.02])).mean < 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1), max_size=30), st.booleans())
def test_an_estimate_is_within_its_interval(differences: list[float], advantage: bool) -> None:
    gain = estimate_gain(np.array(differences), advantage)
    assert -0.6 <= gain.low <= gain.high <= 0.8
    assert 0 <= gain.probability_better <= 1 + 1e-9
    assert np.isfinite(gain.mean)


def test_many_patients_give_their_mean() -> None:
    gain = estimate_gain(0.2 + np.tile(ALTERNATING, 3))
    assert gain.mean == pytest.approx(0.2, abs=0.02)
    assert gain.low < 0.2 < gain.high
    assert gain.probability_better > 0.99


def test_an_adapter_that_turns_harmful_is_noticed_within_ten_patients() -> None:
    before, after = 0.2 + np.tile(ALTERNATING, 4), -0.1 + ALTERNATING
    assert estimate_gain(before).mean > 0.15
    assert estimate_gain(np.concatenate([before, after])).mean < 0


def test_a_single_bad_patient_withdraws_nothing() -> None:
    assert estimate_gain(np.append(np.random.default_rng(0).uniform(0.1, 0.2, 20), -0.2)).mean > 0


def test_nothing_serves_without_evidence_or_gain() -> None:
    assert choose_served([]) is None
    assert choose_served([stream("v0001", [])]) is None
    assert choose_served([stream("v0001", [-0.1, -0.15, -0.05])]) is None


def test_a_later_candidate_serves_only_if_it_is_expected_to_be_better() -> None:
    first = stream("v0001", [0.2, 0.1, 0.15, 0.2, 0.1])
    better, worse = (stream("v0002", first.differences() + change) for change in (0.03, -0.03))
    assert choose_served([first, better]) is better
    assert choose_served([first, worse]) is first


def test_candidates_are_compared_on_the_patients_of_both() -> None:
    first = stream("v0001", [0.2, 0.1, 0.15, 0.2, 0.1, 0.05, 0.05])
    later = stream("v0002", [0.15, 0.05, 0.1, 0.15, 0.05])
    assert choose_served([first, later]) is first
