"""Keep what every patient scored, to judge an adaptation by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baps.evaluation.evidence import HARMFUL_LOSS
from baps.evaluation.splits import patient_hash


@dataclass(frozen=True)
class PatientScores:
    """Dice (0 to 1) by patient (hashed) from models that were not trained on the patient, with the same prompts.

    Attributes:
        unadapted: scores of the unadapted model.
        candidate: scores of the whole procedure that made the candidate, including the choice of its parts.
        served: scores of the served adapter, of the patients that are new to it.
        parts: scores of the procedure if it is limited to some parts, by their names: ``zoom``, ``head`` and so on.
        min_dice: what the answer of the unadapted model is worth at least, because a mask takes longer to correct below
            this Dice than to draw.
    """

    unadapted: Mapping[str, float]
    candidate: Mapping[str, float]
    served: Mapping[str, float]
    parts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    min_dice: float = 0.0

    @property
    def differences(self) -> dict[str, float]:
        """Gain of the candidate, by patient."""
        return self._gains(self.candidate)

    @property
    def served_differences(self) -> dict[str, float]:
        """Gain of the served adapter, of the patients that are new to it."""
        return self._gains(self.served)

    def _gains(self, scores: Mapping[str, float]) -> dict[str, float]:
        return {patient: dice - max(self.unadapted[patient], self.min_dice) for patient, dice in scores.items()}

    @property
    def harmed(self) -> float:
        """Share of the patients that lose more than ``HARMFUL_LOSS``, 0 to 1; 0 without patients."""
        return float(np.mean([gain < -HARMFUL_LOSS for gain in self.differences.values()])) if self.unadapted else 0.0

    @property
    def worst(self) -> float | None:
        """The smallest gain of a patient, or None without patients."""
        return min(self.differences.values(), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON, for the adapter's record.

        Returns:
            The scores and differences by name, ``harmed`` and ``worst``.
        """

        def rounded(scores: Mapping[str, float]) -> dict[str, float]:
            return {patient: round(dice, 4) for patient, dice in scores.items()}

        return {
            "unadapted": rounded(self.unadapted),
            "candidate": rounded(self.candidate),
            "served": rounded(self.served),
            "parts": {name: rounded(scores) for name, scores in self.parts.items()},
            "differences": rounded(self.differences),
            "served_differences": rounded(self.served_differences),
            "harmed": self.harmed,
            "worst": None if self.worst is None else round(self.worst, 4),
        }


def means_by_hash(scores: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """Average the Dice of every patient, whose name is hashed.

    Args:
        scores: Dice (0 to 1) of each patient, of any shape.

    Returns:
        Mean Dice by hash of the patient.
    """
    return {patient_hash(patient): float(dice.mean()) for patient, dice in scores.items()}
