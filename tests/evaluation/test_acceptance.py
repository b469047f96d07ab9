from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from baps.evaluation.acceptance import PairedComparison, compare


def _scores_of(owners: Sequence[str], scores: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Build scores (N, click sets) of slices, and the patient of each slice."""
    return {name: scores[[owner == name for owner in owners]] for name in dict.fromkeys(owners)}


def test_comparison_of_three_patients_by_hand() -> None:
    before = _scores_of("aabc", np.array([[0.5, 0.7], [0.4, 0.4], [0.6, 0.8], [0.2, 0.4]]))
    after = _scores_of("aabc", np.array([[0.6, 0.8], [0.5, 0.7], [0.6, 0.8], [0.5, 0.7]]))
    verdict = compare(before, after)
    # Slices gain 0.1, 0.2, 0, 0.3; patients 0.15, 0, 0.3: mean 0.15, deviation 0.15.
    assert verdict.before == pytest.approx(0.5)
    assert verdict.after == pytest.approx(0.65)
    assert verdict.gain == pytest.approx(0.15)
    assert verdict.standard_error == pytest.approx(0.15 / math.sqrt(3))
    # Means of the sets of clicks: 0.425 and 0.575 before, 0.55 and 0.75 after.
    assert verdict.before_std == pytest.approx(0.075)
    assert verdict.after_std == pytest.approx(0.1)
    assert (verdict.unit, verdict.count) == ("patient", 3)
    assert verdict.better


def test_two_patients_are_compared_by_slices() -> None:
    before, after = np.zeros((4, 1)), np.array([[0.1], [0.2], [0.3], [0.6]])
    verdict = compare(_scores_of("bbba", before), _scores_of("bbba", after))
    assert (verdict.unit, verdict.count) == ("slice", 4)
    assert verdict.gain == pytest.approx((0.2 + 0.6) / 2)  # Each patient has the same weight.
    assert verdict.standard_error == pytest.approx(np.std([0.1, 0.2, 0.3, 0.6], ddof=1) / 2)


def test_the_order_of_patients_does_not_matter() -> None:
    random = np.random.default_rng(0)
    before, after = random.random((6, 3)), random.random((6, 3))
    order = [5, 2, 0, 1, 4, 3]
    shuffled = [_scores_of(["abcabc"[row] for row in order], scores[order]) for scores in (before, after)]
    assert list(shuffled[0]) != list("abc")
    in_order = compare(_scores_of("abcabc", before), _scores_of("abcabc", after)).to_dict()
    assert compare(*shuffled).to_dict() == pytest.approx(in_order)
    assert compare(shuffled[0], _scores_of("abcabc", after)).to_dict() == pytest.approx(in_order)


def test_one_slice_is_never_enough() -> None:
    verdict = compare({"a": np.array([[0.1]])}, {"a": np.array([[0.9]])})
    assert verdict.standard_error is None
    assert not verdict.better
    assert verdict.sentence().endswith("with standard error unknown over 1 slice")


@pytest.mark.parametrize(
    ("gain", "error", "better"),
    [(0.02, 0.01, True), (0.02, 0.03, False), (0.02, 0.02, False), (0.0, 0.0, False), (-0.1, 0.01, False)],
)
def test_gain_must_exceed_zero_and_its_error(gain: float, error: float, better: bool) -> None:
    assert PairedComparison(0.5, 0.5 + gain, 0, 0, gain, error, "patient", 3).better is better


def test_no_change_is_not_better() -> None:
    same = _scores_of("aaabbbccc", np.random.default_rng(0).random((9, 2)))
    assert not compare(same, same).better


def test_sentence_of_the_comparison() -> None:
    message = PairedComparison(0.5, 0.625, 0.01, 0.02, 0.125, 0.03125, "patient", 3).sentence()
    assert message == (
        "Dice 0.500 before and 0.625 after on held-back patients: gain +0.125 with standard error 0.031 over 3 patients"
    )
    assert (
        PairedComparison(0.5, 0.4, 0, 0, -0.1, 0.1, "slice", 1)
        .sentence()
        .endswith("gain -0.100 with standard error 0.100 over 1 slice")
    )
