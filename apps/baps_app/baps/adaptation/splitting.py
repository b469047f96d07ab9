"""Who is trained on and who judges: split by patient, by hash, and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..replacing import replacing

FEW = 4
"""Up to so many patients are judged by leaving one out in turn."""

HELD_BACK_SHARE = 0.2


@dataclass(frozen=True)
class Split:
    """Patients by role.

    Attributes:
        training: patients to train on.
        held_back: patients that only judge. Empty with ``FEW`` patients or fewer: then each judges in turn, or, if
            there is but one, nobody.
    """

    training: tuple[str, ...]
    held_back: tuple[str, ...]

    @property
    def folds(self) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """(training, judging) for every run that a check needs; the last run of few patients trains on all."""
        if self.held_back:
            return [(self.training, self.held_back)]
        if len(self.training) < 2:
            return []
        return [(tuple(p for p in self.training if p != out), (out,)) for out in self.training]


def patient_hash(patient: str) -> str:
    """A name for a patient that says nothing of who it is, and orders patients at random but always alike."""
    return hashlib.sha256(f"baps split {patient}".encode()).hexdigest()[:16]


def split_patients(patients: Iterable[str], memory: Path | None = None) -> Split:
    """Split patients, the same way every time.

    Args:
        patients: whom there are labels of.
        memory: a JSON file that keeps the roles (by hash). A patient keeps its role when others come: those who were
            trained on while they were few are not held back later, for the served adapter knows them.
    """
    ordered = sorted(set(patients), key=patient_hash)
    roles: dict[str, str] = json.loads(memory.read_text()) if memory and memory.exists() else {}
    few = len(ordered) <= FEW
    wanted = 0 if few else max(1, round(HELD_BACK_SHARE * len(ordered)))
    held = [p for p in ordered if roles.get(patient_hash(p)) == "held back"]
    for patient in ordered:
        if patient_hash(patient) not in roles:
            role = "held back" if len(held) < wanted else "training"
            roles[patient_hash(patient)] = role
            if role == "held back":
                held.append(patient)
    alone = len(held) == len(ordered)  # Another organ's patients, all held back there: each judges in turn here.
    if not held and not few:  # The patients that were held back are gone: the next one takes their place.
        roles[patient_hash(ordered[0])] = "held back"
        held.append(ordered[0])
    if memory:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with replacing(memory) as partial:
            partial.write_text(json.dumps(roles, indent=1, sort_keys=True))
    if few or alone:
        return Split(tuple(ordered), ())
    return Split(tuple(p for p in ordered if p not in held), tuple(p for p in ordered if p in held))
