"""Divide patients into groups, by hash, so that every patient is judged by an adapter that was not trained on it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

MAX_GROUPS = 4
"""Maximum number of groups; with each, a model is trained on the other groups."""


@dataclass(frozen=True)
class Split:
    """Patients, divided for cross-fitting.

    Attributes:
        patients: all patients, ordered by hash.
        groups: groups of patients that are left out in turn; empty if there is only one patient.
    """

    patients: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...] = ()

    @property
    def folds(self) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """Training and held-out patients of every evaluated run; a last run trains on all."""
        return [(tuple(p for p in self.patients if p not in held_out), held_out) for held_out in self.groups]

    @property
    def evaluation(self) -> str:
        """How an adapter is evaluated: ``leave some out`` or ``none, one patient only``."""
        return "leave some out" if self.groups else "none, one patient only"


def patient_hash(patient: str) -> str:
    """Hash a patient's identifier, to name and order patients without revealing who they are.

    Args:
        patient: the identifier.

    Returns:
        16 hexadecimal digits.
    """
    return hashlib.sha256(f"baps split {patient}".encode()).hexdigest()[:16]


def split_patients(patients: Iterable[str]) -> Split:
    """Divide patients into groups, the same way every time.

    Args:
        patients: the patients that have labels.

    Returns:
        The split.
    """
    ordered = tuple(sorted(set(patients), key=patient_hash))
    if len(ordered) < 2:
        return Split(ordered)
    return Split(ordered, tuple(ordered[number::MAX_GROUPS] for number in range(min(MAX_GROUPS, len(ordered)))))
