from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from baps.evaluation.splits import Split, patient_hash
from baps.fseft.folds import train_folds
from baps.training.plan import ServedAdapter

SPLIT = Split(("a", "b", "c"), (("a",), ("b", "c")))


class Trainer:
    """Represents an adapter by its training patients; ``calls`` records the trainings and scorings in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def train(self, number: int, patients: Sequence[str]) -> tuple[str, int]:
        self.calls.append((number, "".join(patients)))
        return "".join(patients), number

    def score(self, patient: str, adapter: str | None) -> NDArray[np.float64]:
        self.calls.append((patient, adapter))
        return np.array([[len(adapter or "") / 10]])


def test_every_patient_is_scored_by_what_did_not_see_it_and_the_last_run_trains_on_all() -> None:
    trainer = Trainer()
    trained, scores = train_folds(SPLIT, trainer.train, trainer.score, None)
    assert trained == ("abc", 2)
    assert trainer.calls == [
        (0, "bc"), ("a", None), ("a", "bc"), (1, "a"), ("b", None), ("b", "a"), ("c", None), ("c", "a"), (2, "abc"),
    ]  # fmt: skip
    assert scores.unadapted.keys() == scores.adapted.keys() == {"a", "b", "c"}
    assert scores.served == {}
    comparison = scores.comparison()
    assert comparison is not None
    assert (comparison.unit, comparison.gain) == ("patient", pytest.approx(0.4 / 3))
    assert scores.by_patient().differences == pytest.approx(
        {patient_hash("a"): 0.2, patient_hash("b"): 0.1, patient_hash("c"): 0.1}
    )


def test_the_served_adapter_is_scored_on_patients_that_are_new_to_it() -> None:
    trainer = Trainer()
    served = ServedAdapter("old one", {"seen_patients": [patient_hash("c"), patient_hash("a")]})
    _, scores = train_folds(SPLIT, trainer.train, trainer.score, served)
    assert scores.served.keys() == {"b"}
    against_served = scores.comparison_with_served()
    assert against_served is not None
    assert against_served.gain == pytest.approx(0.1 - 0.7)
    assert scores.by_patient(min_dice=0.5).served_differences == pytest.approx({patient_hash("b"): 0.2})
    assert scores.by_patient(min_dice=0.5).differences[patient_hash("b")] == pytest.approx(-0.4)


def test_a_single_patient_is_trained_on_and_not_scored() -> None:
    trainer = Trainer()
    trained, scores = train_folds(Split(("a",)), trainer.train, trainer.score, None)
    assert (trained, trainer.calls) == (("a", 0), [(0, "a")])
    assert scores.comparison() is None
    assert scores.comparison_with_served() is None
    assert scores.by_patient().differences == {}
