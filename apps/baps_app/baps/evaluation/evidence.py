"""Keep the evidence of a candidate: one paired difference of Dice for each patient, in order of arrival."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baps.errors import BapsError, InputError

HARMFUL_LOSS = 0.05
"""Dice (0 to 1) that a patient must lose to be counted as worse."""


@dataclass
class PatientEvidence:
    """The evidence of one patient.

    Attributes:
        cross_fitted: difference measured with an adapter of the same training that had not seen the patient, or None if
            the patient came after the training.
        volumes: differences measured on volumes that came after the training, or None for volumes of a patient with a
            cross-fitted difference; with the version of the label that they were measured on, by hash of the image.
    """

    cross_fitted: float | None = None
    volumes: dict[str, tuple[str, float | None]] = field(default_factory=dict)

    @property
    def difference(self) -> float:
        """Dice of the candidate minus that of the unadapted model, mean of the patient, -1 to 1."""
        if self.cross_fitted is not None:
            return self.cross_fitted
        return fmean(difference for _, difference in self.volumes.values() if difference is not None)


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
        self._entries: dict[str, PatientEvidence] = {}
        self._ignored: dict[str, str] = {}  # Labels by volume.

    @property
    def key(self) -> str:
        """Name of the stream: the candidate and the model."""
        return f"{self.candidate} {self.black_box}"

    def add(self, patient: str, difference: float) -> None:
        """Add a patient of the training, or replace the patient's difference by a cross-fitted one.

        Args:
            patient: hash of the patient, see ``patient_hash``.
            difference: Dice of the candidate minus that of the unadapted model, mean of the patient, -1 to 1.

        Raises:
            InputError: if the difference is not a difference of Dice.
        """
        checked, entry = _checked(difference), self._entries.setdefault(patient, PatientEvidence())
        entry.cross_fitted = checked
        entry.volumes = {volume: (label, None) for volume, (label, _) in entry.volumes.items()}

    def add_volume(self, patient: str, volume: str, label: str, difference: float) -> None:
        """Add a volume that was labelled after the training, or replace its difference if its label changed.

        The difference is ignored if the candidate was trained on the patient: the cross-fitted difference stays.

        Args:
            patient: hash of the patient.
            volume: hash of the image.
            label: version of the label.
            difference: Dice of the candidate minus that of the unadapted model, -1 to 1.

        Raises:
            InputError: if the difference is not a difference of Dice.
        """
        checked = _checked(difference)
        entry = self._entries.setdefault(patient, PatientEvidence())
        entry.volumes[volume] = label, None if entry.cross_fitted is not None else checked

    def remember_label(self, patient: str, volume: str, label: str) -> None:
        """Remember a label of a patient with a cross-fitted difference, which is dropped when the label changes.

        Args:
            patient: hash of the patient; one without a cross-fitted difference is ignored.
            volume: hash of the image.
            label: version of the label.
        """
        entry = self._entries.get(patient)
        if entry and entry.cross_fitted is not None:
            entry.volumes.setdefault(volume, (label, None))

    def ignore(self, volume: str, label: str) -> None:
        """Leave a label of a patient out whom the candidate was trained on, and who has no cross-fitted difference.

        Args:
            volume: hash of the image.
            label: version of the label.
        """
        self._ignored[volume] = label

    def knows(self, volume: str, label: str) -> bool:
        """Return whether a label of a volume is part of the evidence, or is not to be judged.

        Args:
            volume: hash of the image.
            label: version of the label.

        Returns:
            Whether it is.
        """
        if self._ignored.get(volume) == label:
            return True
        return any(label == entry.volumes.get(volume, ("",))[0] for entry in self._entries.values())

    def drop_changed(self, labels: Mapping[str, str], complete: bool = False) -> int:
        """Drop what was measured on labels that were changed or deleted since.

        Args:
            labels: version of the label that every volume has now, or "" for none, by hash of the image. Volumes that
                are not listed keep their evidence, because their labels may not have been read.
            complete: whether volumes that are not listed have no label.

        Returns:
            Number of patients whose evidence was dropped, whole or in part.
        """
        dropped = 0
        for patient, entry in list(self._entries.items()):
            gone = [
                volume
                for volume, (label, _) in entry.volumes.items()
                if labels.get(volume, "" if complete else label) != label
            ]
            if not gone:
                continue
            dropped += 1
            for volume in gone:
                del entry.volumes[volume]
            if entry.cross_fitted is not None or not entry.volumes:
                del self._entries[patient]
        return dropped

    def __len__(self) -> int:
        """Count the patients.

        Returns:
            Their number.
        """
        return len(self._entries)

    def __contains__(self, patient: object) -> bool:
        """Return whether a patient has judged the candidate.

        Args:
            patient: hash of the patient.

        Returns:
            Whether it has.
        """
        return patient in self._entries

    @property
    def patients(self) -> tuple[str, ...]:
        """Hashes of the patients, in order of arrival."""
        return tuple(self._entries)

    def volumes(self, patient: str) -> tuple[str, ...]:
        """List the labelled images of a patient.

        Args:
            patient: hash of the patient.

        Returns:
            Hashes of the images; empty for a patient without evidence, or of an earlier release.
        """
        return tuple(self._entries[patient].volumes) if patient in self._entries else ()

    def measured(self) -> list[str]:
        """Say how each patient's difference was measured.

        Returns:
            ``cross-fitted`` or ``after training``, in order of arrival.
        """
        return ["after training" if entry.cross_fitted is None else "cross-fitted" for entry in self._entries.values()]

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
            ``candidate``, ``black_box``, ``patients``, a list of hash, cross-fitted difference or None, and the volumes
                with their labels and differences; and ``ignored``, labels by volume.
        """
        entries = [[patient, entry.cross_fitted, entry.volumes] for patient, entry in self._entries.items()]
        return {
            "candidate": self.candidate,
            "black_box": self.black_box,
            "patients": entries,
            "ignored": dict(self._ignored),
        }

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
            for patient, cross_fitted, volumes in record["patients"]:
                _require(_text(patient) not in stream and (cross_fitted is not None or bool(volumes)))
                if cross_fitted is not None:
                    stream.add(patient, cross_fitted)
                for volume, (label, difference) in volumes.items():
                    if difference is None:
                        stream.remember_label(patient, volume, _text(label))
                    else:
                        stream.add_volume(patient, volume, _text(label), difference)
            for volume, label in record.get("ignored", {}).items():
                stream.ignore(_text(volume), _text(label))
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, InputError) as error:
            raise BapsError("The evidence of an adapter cannot be read. Evaluate the adapter again.") from error
        return stream


def _checked(difference: float) -> float:
    if not (isfinite(difference) and -1 <= difference <= 1):
        raise InputError("A difference of Dice must be a number from -1 to 1. Score the patient again.")
    return float(difference)


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
