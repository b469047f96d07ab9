from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from baps.evaluation.splits import Split, patient_hash
from baps.training.folds import train_folds
from baps.training.plan import AdaptationPlan, ServedAdapter

FEW = Split(("a", "b", "c"), (), (("a",), ("b", "c")))
MANY = Split(("a", "b"), ("c", "d"))


class Trainer:
    """Represents an adapter by its training patients; ``calls`` records the trainings and scorings in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def train(self, number: int, patients: Sequence[str], held_out: Sequence[str]) -> tuple[str, int]:
        self.calls.append((number, "".join(patients), "".join(held_out)))
        return "".join(patients), number

    def score(self, patient: str, arm: str, adapter: str | None) -> NDArray[np.float64]:
        self.calls.append((patient, arm, adapter))
        return np.array([[len(adapter or "") / 10]])


def test_adapter_of_the_only_fold_is_used_with_held_back_patients() -> None:
    trainer = Trainer()
    trained, scores = train_folds(MANY, MANY.folds, trainer.train, trainer.score, None, {"c", "d"})
    assert trained == ("ab", 0)
    assert trainer.calls == [
        (0, "ab", "cd"), ("c", "as it is", None), ("c", "adapted", "ab"),
        ("d", "as it is", None), ("d", "adapted", "ab"),
    ]  # fmt: skip
    assert scores.served == {}


def test_last_run_of_cross_validation_trains_on_all() -> None:
    trainer = Trainer()
    trained, scores = train_folds(FEW, FEW.folds, trainer.train, trainer.score, None, {"a", "b"})
    assert trained == ("abc", 2)
    assert trainer.calls == [
        (0, "bc", "a"), ("a", "as it is", None), ("a", "adapted", "bc"),
        (1, "a", "bc"), ("b", "as it is", None), ("b", "adapted", "a"),
        (2, "abc", ""),
    ]  # fmt: skip
    assert scores.unadapted.keys() == scores.adapted.keys() == {"a", "b"}


def test_the_served_adapter_is_scored_on_patients_that_are_new_to_it() -> None:
    trainer = Trainer()
    served = ServedAdapter("old one", {"seen_patients": [patient_hash("c")], "verdict": {"gain": 0.1}})
    _, scores = train_folds(MANY, MANY.folds, trainer.train, trainer.score, served, {"c", "d"})
    assert scores.served.keys() == {"d"}
    assert trainer.calls[-1] == ("d", "served", "old one")
    acceptance = scores.check(served, unit_name="volume")
    assert acceptance.against_served is not None
    assert acceptance.against_served.gain == pytest.approx(0.2 - 0.7)
    assert acceptance.comparison is not None
    assert (acceptance.comparison.unit, acceptance.status) == ("volume", "rejected")
    assert scores.check(served, min_dice=0.5).status == "rejected"


def test_without_folds_all_are_trained_on_and_none_is_scored() -> None:
    trainer, alone = Trainer(), Split(("a",), ())
    trained, scores = train_folds(alone, alone.folds, trainer.train, trainer.score, None, {"a"})
    assert (trained, trainer.calls) == (("a", 0), [(0, "a", "")])
    assert scores.check(None).status == "unverified"


@pytest.mark.parametrize(
    ("split", "evaluation"),
    [(MANY, "held back"), (FEW, "leave some out"), (Split(("a",), ()), "none, one patient only")],
)
def test_evaluation_method_of_an_adapter(split: Split, evaluation: str) -> None:
    assert split.evaluation == evaluation


def test_fingerprint_depends_on_the_facts_only() -> None:
    first, same, different = (AdaptationPlan(MANY, {"settings": {}, "seed": seed}) for seed in (0, 0, 1))
    assert first.fingerprint == same.fingerprint != different.fingerprint
