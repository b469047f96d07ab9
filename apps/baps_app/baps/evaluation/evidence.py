"""Keep the evidence of a candidate: one paired difference of Dice for each patient, in order of arrival."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baps.errors import BapsError, InputError

HARMFUL_LOSS = 0.05
"""Dice (0 to 1) that a patient must lose to be counted as worse."""


@dataclass(frozen=True)
class PatientDifference:
    """The difference that a candidate makes for a patient.

    Attributes:
        difference: mean Dice of the candidate minus that of the unadapted model, -1 to 1; the mean is over the
            patient's slices or volumes.
        prospective: whether the patient came after the training. Otherwise the difference is cross-fitted: it was
            measured with an adapter of the same training that had not seen the patient.
    """

    difference: float
    prospective: bool


class EvidenceStream:
    """The evidence of one candidate with one model.

    Patients are the unit: slices, clicks and volumes of one patient are not independent. A patient counts once.

    Args:
        candidate: version of the adapter.
        black_box: SHA-256 of the model's weights. If a model changes, its adapters start new streams.
    """

    def __init__(self, candidate: str, black_box: str) -> None:
        self.candidate = candidate
        self.black_box = black_box
        self._entries: dict[str, PatientDifference] = {}

    @property
    def key(self) -> str:
        """Name of the stream: the candidate and the model."""
        return f"{self.candidate} {self.black_box}"

    def add(self, patient: str, difference: float, prospective: bool = False) -> None:
        """Add a patient, or replace the difference of a patient whose label changed.

        A patient whom the candidate was trained on never becomes a prospective one: the cross-fitted difference stays.

        Args:
            patient: hash of the patient, see ``patient_hash``.
            difference: Dice of the candidate minus that of the unadapted model, mean of the patient, -1 to 1.
            prospective: whether the patient came after the training.

        Raises:
            InputError: if the difference is not a difference of Dice.
        """
        if not (isfinite(difference) and -1 <= difference <= 1):
            raise InputError("A difference of Dice must be a number from -1 to 1. Score the patient again.")
        known = self._entries.get(patient)
        if known is None or known.prospective or not prospective:
            self._entries[patient] = PatientDifference(float(difference), prospective)

    def remove(self, patient: str) -> None:
        """Remove a patient, for example because the label was deleted.

        Args:
            patient: hash of the patient; a patient without evidence is ignored.
        """
        self._entries.pop(patient, None)

    def __len__(self) -> int:
        """Count the patients."""
        return len(self._entries)

    def __contains__(self, patient: object) -> bool:
        """Return whether a patient has judged the candidate."""
        return patient in self._entries

    @property
    def patients(self) -> tuple[str, ...]:
        """Hashes of the patients, in order of arrival."""
        return tuple(self._entries)

    @property
    def prospective_count(self) -> int:
        """Number of patients who came after the training."""
        return sum(entry.prospective for entry in self._entries.values())

    def differences(self, patients: Iterable[str] | None = None) -> NDArray[np.float64]:
        """Return the paired differences.

        Args:
            patients: hashes of the patients to return, or None for all. Patients without evidence are left out.

        Returns:
            The differences (patients,), -1 to 1, in order of arrival or in the given order.
        """
        chosen = self._entries if patients is None else [patient for patient in patients if patient in self._entries]
        return np.array([self._entries[patient].difference for patient in chosen], float)

    @property
    def worse_count(self) -> int:
        """Number of patients who lose more than ``HARMFUL_LOSS``."""
        return sum(entry.difference < -HARMFUL_LOSS for entry in self._entries.values())

    @property
    def worst(self) -> float | None:
        """The smallest difference, -1 to 1, or None if there is no patient."""
        return min((entry.difference for entry in self._entries.values()), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the stream as JSON.

        Returns:
            ``candidate``, ``black_box`` and ``patients``, a list of (hash, difference, prospective).
        """
        entries = [[patient, entry.difference, entry.prospective] for patient, entry in self._entries.items()]
        return {"candidate": self.candidate, "black_box": self.black_box, "patients": entries}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> EvidenceStream:
        """Read a stream back.

        Args:
            record: the JSON, see ``to_dict``.

        Returns:
            The stream.

        Raises:
            BapsError: if the record is damaged, or lists a patient twice.
        """
        try:
            stream = cls(_text(record["candidate"]), _text(record["black_box"]))
            for patient, difference, prospective in record["patients"]:
                if _text(patient) in stream._entries or not isinstance(prospective, bool):
                    raise ValueError
                stream.add(patient, difference, prospective)
        except (KeyError, TypeError, ValueError, InputError) as error:
            raise BapsError("The evidence of an adapter cannot be read. Evaluate the adapter again.") from error
        return stream


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
