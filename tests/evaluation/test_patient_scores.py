from __future__ import annotations

import json

import pytest

from baps.evaluation.evidence import HARMFUL_LOSS
from baps.evaluation.patient_scores import PatientScores


def test_patients_that_lose_are_reported() -> None:
    before = {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5}
    after = {"a": 0.9, "b": 0.5 - HARMFUL_LOSS - 0.01, "c": 0.5 - HARMFUL_LOSS + 0.01, "d": 0.5}
    scores = PatientScores(before, after, {}, {"head": after})
    assert scores.differences == pytest.approx({"a": 0.4, "b": -0.06, "c": -0.04, "d": 0})
    assert (scores.harmed, scores.worst) == (0.25, pytest.approx(-0.06))
    assert json.loads(json.dumps(scores.to_dict()))["parts"]["head"]["a"] == 0.9
    nobody = PatientScores({}, {}, {}, {})
    assert (nobody.harmed, nobody.worst) == (0.0, None)
    json.dumps(nobody.to_dict(), allow_nan=False)


def test_gains_are_counted_from_what_a_mask_is_worth_at_least() -> None:
    scores = PatientScores({"a": 0.0, "b": 0.8}, {"a": 0.7, "b": 0.9}, {"b": 0.7}, min_dice=0.5)
    assert scores.differences == pytest.approx({"a": 0.2, "b": 0.1})
    assert scores.served_differences == pytest.approx({"b": -0.1})
    assert scores.to_dict()["differences"] == {"a": 0.2, "b": 0.1}
