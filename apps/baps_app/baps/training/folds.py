"""Train on every fold of a split, and score each adapter on the patients that its fold left out."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from baps.evaluation.acceptance import Acceptance, check_acceptance
from baps.evaluation.splits import Split, patient_hash
from baps.training.plan import AnyAdapter, ServedAdapter

Course = TypeVar("Course")
"""How a training went."""

Fold = tuple[tuple[str, ...], tuple[str, ...]]
"""Patients to train on, and patients that are held out."""

UNADAPTED: Final[Literal["as it is"]] = "as it is"
"""The arm of the unadapted model. Query logs contain this text, also those of version 0.1."""

Arm = Literal["as it is", "adapted", "served"]
"""Which model is scored. Query logs contain these texts; the first is ``UNADAPTED``."""


@dataclass(frozen=True)
class HoldoutScores:
    """Scores on held-out patients, see ``Scores``.

    Attributes:
        unadapted: scores of the unadapted model.
        adapted: scores of the adapter of the fold that left a patient out.
        served: scores of the served adapter, of the patients that it was not trained on.
    """

    unadapted: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    adapted: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    served: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def check(
        self, served: ServedAdapter[AnyAdapter] | None, min_dice: float = 0.0, unit_name: str = "slice"
    ) -> Acceptance:
        """Decide whether the candidate is to be published, see ``check_acceptance``.

        Args:
            served: the adapter that is served now, or None.
            min_dice: Dice (0 to 1) that the candidate must reach in any case.
            unit_name: what was scored, ``slice`` or ``volume``.

        Returns:
            The decision with its reasons.
        """
        verdict = served.record["verdict"] if served else None
        return check_acceptance(self.unadapted, self.adapted, self.served, verdict, min_dice, unit_name)


def train_folds(
    split: Split,
    folds: Sequence[Fold],
    train: Callable[[int, Sequence[str], Sequence[str]], tuple[AnyAdapter, Course]],
    score: Callable[[str, Arm, AnyAdapter | None], NDArray[np.float64]],
    served: ServedAdapter[AnyAdapter] | None,
    scored_patients: Container[str],
) -> tuple[tuple[AnyAdapter, Course], HoldoutScores]:
    """Train on every fold and score its adapter; without held-back patients, train on all in the end.

    Args:
        split: the split of the patients.
        folds: the folds of the split that are trained.
        train: trains an adapter, given the number of the run, the patients to train on and those held out.
        score: scores an adapter, or None for the unadapted model, on a patient: (slices or volumes, click sets).
        served: the adapter that is served now, or None.
        scored_patients: the held-out patients that are scored.

    Returns:
        The candidate with the course of its training, and the scores.
    """
    scores = HoldoutScores()
    trained: tuple[AnyAdapter, Course] | None = None
    for number, (training, held_out) in enumerate(folds):
        trained = train(number, training, held_out)
        for patient in held_out:
            if patient not in scored_patients:
                continue
            scores.unadapted[patient] = score(patient, UNADAPTED, None)
            scores.adapted[patient] = score(patient, "adapted", trained[0])
            if served and patient_hash(patient) not in served.trained_on:
                scores.served[patient] = score(patient, "served", served.adapter)
    if trained is None or not split.held_back:
        trained = train(len(folds), split.training, ())
    return trained, scores
