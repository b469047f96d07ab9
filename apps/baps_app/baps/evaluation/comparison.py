"""Compare two models on the same patients with the same clicks. What it proves is decided by ``gate``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

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

    def sentence(self) -> str:
        """Describe the comparison in a sentence.

        Returns:
            Both means, the gain and its standard error.
        """
        error = "unknown" if self.standard_error is None else f"{self.standard_error:.3f}"
        return (
            f"Dice {self.before:.3f} before and {self.after:.3f} after on patients that did not train the adapter: "
            f"gain {self.gain:+.3f} with standard error {error} over {self.count} "
            f"{self.unit}{'s' if self.count != 1 else ''}"
        )

    def to_dict(self) -> dict[str, object]:
        """Return the comparison as JSON, for the adapter's record.

        Returns:
            The fields by name.
        """
        return asdict(self)


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


def describe_training(comparison: PairedComparison | None) -> str:
    """Describe what a training measured in a sentence.

    Args:
        comparison: comparison of the candidate with the unadapted model, or None if there was only one patient.

    Returns:
        The sentence.
    """
    if comparison is None:
        return "There is only one patient, so the adapter was not evaluated. Label a volume of another patient."
    return f"{comparison.sentence()}."
