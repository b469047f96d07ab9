"""Decide whether a candidate is better: a paired comparison on patients it was not trained on, with fixed clicks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = Mapping[str, NDArray[np.float64]]
"""Dice (0 to 1) by patient, (slices, click sets)."""

_MIN_PATIENTS = 3
"""Smallest number of patients for a standard error over patients."""


@dataclass(frozen=True)
class PairedComparison:
    """A comparison of two models on the same slices with the same clicks. All values are Dice, 0 to 1.

    Attributes:
        before: mean Dice of the first model.
        after: mean Dice of the second model.
        before_std: standard deviation over the sets of clicks of the first model's mean over slices.
        after_std: the same for the second model.
        gain: mean of the paired differences, over patients.
        standard_error: standard error of the gain, or None if there is only one unit.
        unit: unit of the standard error: ``patient`` with three patients or more, else ``slice`` or ``volume``. The
            latter underestimate the error, because those of one patient are correlated.
        count: number of units.
    """

    before: float
    after: float
    before_std: float
    after_std: float
    gain: float
    standard_error: float | None
    unit: str
    count: int

    @property
    def better(self) -> bool:
        """Whether the gain is positive and exceeds its standard error."""
        return self.standard_error is not None and self.gain > 0 and self.gain > self.standard_error

    def sentence(self) -> str:
        """Describe the comparison in a sentence.

        Returns:
            Both means, the gain and its standard error.
        """
        error = "unknown" if self.standard_error is None else f"{self.standard_error:.3f}"
        return (
            f"Dice {self.before:.3f} before and {self.after:.3f} after on held-back patients: "
            f"gain {self.gain:+.3f} with standard error {error} over {self.count} "
            f"{self.unit}{'s' if self.count != 1 else ''}"
        )

    def to_dict(self) -> dict[str, object]:
        """Return the comparison as JSON, for the adapter's record.

        Returns:
            The fields by name.
        """
        return asdict(self)


@dataclass(frozen=True)
class Acceptance:
    """Whether a candidate is to be published.

    Attributes:
        comparison: comparison with the unadapted model, or None if there was only one patient.
        against_served: comparison with the served adapter, on patients that neither was trained on, or None if there
            are none.
        no_worse_than_served: whether the candidate is no worse than the served adapter: on those patients, or else by
            the gain of each over the unadapted model, allowing for the candidate's standard error.
        min_dice: Dice (0 to 1) that the candidate must reach in any case.
    """

    comparison: PairedComparison | None
    against_served: PairedComparison | None
    no_worse_than_served: bool
    min_dice: float = 0.0

    @property
    def _reaches_min_dice(self) -> bool:
        return self.comparison is None or self.comparison.after >= self.min_dice

    @property
    def status(self) -> str:
        """``accepted`` if the candidate beats the unadapted model and is no worse than the served adapter.

        Otherwise ``rejected``, or ``unverified`` if there was nobody to evaluate it on.
        """
        if self.comparison is None:
            return "unverified"
        return (
            "accepted"
            if self.comparison.better and self.no_worse_than_served and self._reaches_min_dice
            else "rejected"
        )

    def sentence(self) -> str:
        """Describe the outcome in sentences.

        Returns:
            The comparison, and why the candidate was rejected if it was.
        """
        if self.comparison is None:
            return "There is only one patient, so the adapter was not evaluated. Label a volume of another patient."
        text = f"{self.comparison.sentence()}."
        if self.against_served:
            text += f" Against the served adapter: gain {self.against_served.gain:+.3f}."
        elif not self.no_worse_than_served:
            text += " The served adapter gained more."
        if not self._reaches_min_dice:
            text += f" Below {self.min_dice:g} a mask takes longer to correct than to draw. Label more volumes."
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as JSON, for the adapter's record.

        Returns:
            ``verdict`` and ``against_served``, each a comparison or None.
        """
        return {
            "verdict": self.comparison.to_dict() if self.comparison else None,
            "against_served": self.against_served.to_dict() if self.against_served else None,
        }


def check_acceptance(
    before: Scores,
    after: Scores,
    served_scores: Scores,
    served_comparison: Mapping[str, Any] | None,
    min_dice: float = 0.0,
    unit_name: str = "slice",
) -> Acceptance:
    """Decide whether a candidate is to be published.

    Args:
        before: scores of the unadapted model, see ``compare``; empty if nobody is held out.
        after: scores of the candidate on the same patients.
        served_scores: scores of the served adapter, of those patients that it was not trained on.
        served_comparison: the comparison in the served adapter's record, see ``PairedComparison.record``, or None.
        min_dice: Dice (0 to 1) that the candidate must reach in any case.
        unit_name: what was scored, ``slice`` or ``volume``.

    Returns:
        The decision with its reasons.
    """
    comparison = compare(before, after, unit_name) if after else None
    if served_scores:
        against_served = compare(served_scores, {patient: after[patient] for patient in served_scores}, unit_name)
        return Acceptance(comparison, against_served, against_served.gain >= 0, min_dice)
    if comparison is None or served_comparison is None:
        return Acceptance(comparison, None, True, min_dice)
    return Acceptance(
        comparison, None, comparison.gain + (comparison.standard_error or 0) >= served_comparison["gain"], min_dice
    )


def compare(before: Scores, after: Scores, unit_name: str = "slice") -> PairedComparison:
    """Compare two scorings of the same slices with the same clicks, or of the same volumes.

    Args:
        before: scores of the first model.
        after: scores of the second model, of the same patients.
        unit_name: what was scored, ``slice`` or ``volume``.

    Returns:
        The comparison.
    """
    differences = [(after[patient] - before[patient]).mean(1) for patient in before]
    by_patient = np.array([values.mean() for values in differences])
    use_pieces = len(differences) < _MIN_PATIENTS
    unit, values = (unit_name, np.concatenate(differences)) if use_pieces else ("patient", by_patient)
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    first, second = np.concatenate(list(before.values())), np.concatenate([after[patient] for patient in before])
    return PairedComparison(
        before=float(first.mean()),
        after=float(second.mean()),
        before_std=float(first.mean(0).std()),
        after_std=float(second.mean(0).std()),
        gain=float(by_patient.mean()),
        standard_error=error,
        unit=unit,
        count=len(values),
    )
