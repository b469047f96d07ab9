"""Is the candidate better? Paired, on patients that it was not trained on, with fixed clicks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = Mapping[str, NDArray[np.float64]]
"""Dice of each patient, (slices, click sets)."""

_ENOUGH_PATIENTS = 3


@dataclass(frozen=True)
class PairedComparison:
    """What the check found.

    Attributes:
        before, after: mean Dice without and with the adapter.
        before_std, after_std: spread over the sets of clicks of the mean over slices.
        gain: mean of the paired differences.
        standard_error: of that mean, or None if there is but one unit.
        unit: what the standard error is taken over: ``patient`` with three or more, else ``slice`` or ``volume`` (which
            says less, for those of one patient are alike).
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


@dataclass(frozen=True)
class Acceptance:
    """What becomes of a candidate.

    Attributes:
        verdict: against the model as it is, or None where there was but one patient.
        against_served: against the served adapter, on patients that neither was trained on, or None where there are
            none.
        no_worse: than what is served: on those patients, else by the gain that was found for each over the model as it
            is, its standard error allowed for.
        least: Dice that it must reach whatever it is compared with, 0 to 1.
    """

    verdict: PairedComparison | None
    against_served: PairedComparison | None
    no_worse: bool
    least: float = 0.0

    @property
    def _useful(self) -> bool:
        return self.verdict is None or self.verdict.after >= self.least

    @property
    def status(self) -> str:
        """``accepted`` if it is better than the unadapted model and no worse than what is served, else ``rejected``.

        ``unverified`` where nobody could judge.
        """
        if self.verdict is None:
            return "unverified"
        return "accepted" if self.verdict.better and self.no_worse and self._useful else "rejected"

    def sentence(self) -> str:
        """What the check found, for people."""
        if self.verdict is None:
            return "Only one patient: nobody is left to check the adapter on. Label another one."
        said = f"{self.verdict.sentence()}."
        if self.against_served:
            said += f" Against the served adapter: gain {self.against_served.gain:+.3f}."
        elif not self.no_worse:
            said += " The served adapter gained more."
        if not self._useful:
            said += f" Below {self.least:g} a mask takes longer to correct than to draw. Label more volumes."
        return said

    def record(self) -> dict[str, Any]:
        """For the adapter's record."""
        return {
            "verdict": self.verdict.record() if self.verdict else None,
            "against_served": self.against_served.record() if self.against_served else None,
        }


def check(
    before: Scores,
    after: Scores,
    served: Scores,
    served_verdict: Mapping[str, Any] | None,
    least: float = 0.0,
    piece: str = "slice",
) -> Acceptance:
    """Whether a candidate is to be served.

    Args:
        before, after: see ``compare``; empty where nobody judges.
        served: likewise of the served adapter, of those patients that it was not trained on.
        served_verdict: what the check said of the served adapter when it was made, see ``PairedComparison.record``.
        least: see ``Acceptance``.
        piece: see ``compare``.
    """
    verdict = compare(before, after, piece) if after else None
    if served:
        against = compare(served, {patient: after[patient] for patient in served}, piece)
        return Acceptance(verdict, against, against.gain >= 0, least)
    if verdict is None or served_verdict is None:
        return Acceptance(verdict, None, True, least)
    return Acceptance(verdict, None, verdict.gain + (verdict.standard_error or 0) >= served_verdict["gain"], least)


def compare(before: Scores, after: Scores, piece: str = "slice") -> PairedComparison:
    """Compare two scorings of the same slices with the same clicks, or of the same volumes.

    Args:
        before, after: of the same patients.
        piece: what was scored.
    """
    differences = [(after[patient] - before[patient]).mean(1) for patient in before]
    by_patient = np.array([values.mean() for values in differences])
    few = len(differences) < _ENOUGH_PATIENTS
    unit, values = (piece, np.concatenate(differences)) if few else ("patient", by_patient)
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
