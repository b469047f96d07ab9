"""Train on every fold of a split, and score each adapter on the patients that its fold left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from baps.evaluation.comparison import PairedComparison, compare
from baps.evaluation.patient_scores import PatientScores
from baps.evaluation.splits import Split, patient_hash
from baps.training.plan import AnyAdapter, ServedAdapter

Course = TypeVar("Course")
"""How a training went."""


@dataclass(frozen=True)
class HeldOutScores:
    """Dice (0 to 1) by patient, (volumes, 1), on patients that were left out of the training.

    Attributes:
        unadapted: scores of the unadapted model.
        adapted: scores of the adapter of the fold that left a patient out.
        served: scores of the served adapter, of the patients that it was not trained on.
    """

    unadapted: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    adapted: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    served: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def comparison(self) -> PairedComparison | None:
        """Compare the candidate with the unadapted model.

        Returns:
            The comparison, or None if nobody was left out.
        """
        return compare(self.unadapted, self.adapted, "volume") if self.adapted else None

    def comparison_with_served(self) -> PairedComparison | None:
        """Compare the candidate with the served adapter, on the patients that are new to both.

        Returns:
            The comparison, or None if there are none.
        """
        candidate = {patient: self.adapted[patient] for patient in self.served}
        return compare(self.served, candidate, "volume") if candidate else None

    def by_patient(self, min_dice: float = 0.0) -> PatientScores:
        """Return the mean scores of every patient, whose name is hashed.

        Args:
            min_dice: see ``PatientScores``.

        Returns:
            The scores.
        """
        unadapted, adapted, served = (
            {patient_hash(patient): float(dice.mean()) for patient, dice in scores.items()}
            for scores in (self.unadapted, self.adapted, self.served)
        )
        return PatientScores(unadapted, adapted, served, min_dice=min_dice)


def train_folds(
    split: Split,
    train: Callable[[int, Sequence[str]], tuple[AnyAdapter, Course]],
    score: Callable[[str, AnyAdapter | None], NDArray[np.float64]],
    served: ServedAdapter[AnyAdapter] | None,
) -> tuple[tuple[AnyAdapter, Course], HeldOutScores]:
    """Train on every fold and score its adapter, and train on all patients in the end.

    Args:
        split: the split of the patients.
        train: trains an adapter, given the number of the run and the patients to train on.
        score: scores an adapter, or None for the unadapted model, on a patient: (volumes, 1).
        served: the adapter that is served now, or None.

    Returns:
        The candidate with the course of its training, and the scores.
    """
    scores = HeldOutScores()
    for number, (training, held_out) in enumerate(split.folds):
        adapter, _ = train(number, training)
        for patient in held_out:
            scores.unadapted[patient] = score(patient, None)
            scores.adapted[patient] = score(patient, adapter)
            if served and patient_hash(patient) not in served.trained_on:
                scores.served[patient] = score(patient, served.adapter)
    return train(len(split.groups), split.patients), scores
