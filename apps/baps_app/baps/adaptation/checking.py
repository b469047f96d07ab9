"""Is the candidate better? Paired, on patients that it was not trained on, with fixed clicks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

_ENOUGH_PATIENTS = 3


@dataclass(frozen=True)
class Verdict:
    """What the check found.

    Attributes:
        before, after: mean Dice without and with the adapter.
        before_std, after_std: spread over the sets of clicks of the mean over slices.
        gain: mean of the paired differences.
        standard_error: of that mean, or None if there is but one unit.
        unit: what the standard error is taken over: ``patient`` with three or more, else ``slice`` (which says less,
            for slices of one patient are alike).
        count: of units.
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
        """Whether the mean gain exceeds zero and its standard error."""
        return self.standard_error is not None and self.gain > 0 and self.gain > self.standard_error

    def sentence(self) -> str:
        """The numbers, for people."""
        error = "unknown" if self.standard_error is None else f"{self.standard_error:.3f}"
        return (
            f"Dice {self.before:.3f} before and {self.after:.3f} after on held-back patients: "
            f"gain {self.gain:+.3f} with standard error {error} over {self.count} "
            f"{self.unit}{'s' if self.count != 1 else ''}"
        )

    def record(self) -> dict[str, object]:
        """For the adapter's record."""
        return asdict(self)


def compare(before: Mapping[str, NDArray[np.float64]], after: Mapping[str, NDArray[np.float64]]) -> Verdict:
    """Compare two scorings of the same slices with the same clicks.

    Args:
        before, after: of each patient, (slices, click sets) Dice.
    """
    differences = [(after[patient] - before[patient]).mean(1) for patient in before]
    by_patient = np.array([values.mean() for values in differences])
    few = len(differences) < _ENOUGH_PATIENTS
    unit, values = ("slice", np.concatenate(differences)) if few else ("patient", by_patient)
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    first, second = np.concatenate(list(before.values())), np.concatenate([after[patient] for patient in before])
    return Verdict(
        before=float(first.mean()),
        after=float(second.mean()),
        before_std=float(first.mean(0).std()),
        after_std=float(second.mean(0).std()),
        gain=float(by_patient.mean()),
        standard_error=error,
        unit=unit,
        count=len(values),
    )
