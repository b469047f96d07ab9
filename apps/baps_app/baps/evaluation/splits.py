"""Who is trained on and who judges: split by patient, by hash, and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Set, Sized
from dataclasses import dataclass
from pathlib import Path

from baps.utils.atomic_write import atomic_write

FEW = 4
"""Up to so many patients are judged by leaving one out in turn."""

FEW_SINGLE = 12
"""Up to so many, if there is but one slice or volume of each, see ``most_few_of``."""

HELD_BACK_SHARE = 0.2


@dataclass(frozen=True)
class Split:
    """Patients by role.

    Attributes:
        training: patients to train on.
        held_back: patients that only judge. Empty where patients are few.
        in_turn: up to ``FEW`` groups of patients who judge in turn where nobody is held back; none, if there is but one
            patient.
    """

    training: tuple[str, ...]
    held_back: tuple[str, ...]
    in_turn: tuple[tuple[str, ...], ...] = ()

    @property
    def folds(self) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """(training, judging) for every run that a check needs; the last run of few patients trains on all."""
        if self.held_back:
            return [(self.training, self.held_back)]
        return [(tuple(p for p in self.training if p not in out), out) for out in self.in_turn]


def patient_hash(patient: str) -> str:
    """A name for a patient that says nothing of who it is, and orders patients at random but always alike."""
    return hashlib.sha256(f"baps split {patient}".encode()).hexdigest()[:16]


def most_few_of(pieces: Mapping[str, Sized]) -> int:
    """Up to how many patients are few, by the slices or volumes of each.

    If there is but one of each, a fifth of them is one or two, which say nothing.
    """
    return FEW_SINGLE if all(len(of_patient) == 1 for of_patient in pieces.values()) else FEW


def split_patients(
    patients: Iterable[str], memory: Path | None = None, known: Set[str] = frozenset(), most_few: int = FEW
) -> Split:
    """Split patients, the same way every time.

    Args:
        patients: whom there are labels of.
        memory: a JSON file that keeps the roles (by hash), in the order in which patients came. A patient keeps its
            role when others come: those who were trained on while they were few are not held back later, for the
            served adapter knows them.
        known: hashes of the patients whom the served adapter was trained on. Of those who came since, the last one
            judges too: it looks most like the next ones, and a new scanner gets a voice. It may be trained on once
            another one has come. Of few patients, only those who came since judge in turn.
        most_few: up to so many patients are few, and judge in turn.
    """
    ordered = sorted(set(patients), key=patient_hash)
    roles: dict[str, str] = json.loads(memory.read_text()) if memory and memory.exists() else {}
    few = len(ordered) <= most_few
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
        with atomic_write(memory) as partial:
            partial.write_text(json.dumps(roles, indent=1))
    new = [p for p in ordered if known and patient_hash(p) not in known]
    if few or alone:
        groups = [tuple((new or ordered)[n::FEW]) for n in range(FEW)]
        return Split(tuple(ordered), (), tuple(filter(None, groups)) if len(ordered) > 1 else ())
    came = list(roles)
    last = max(new, key=lambda patient: came.index(patient_hash(patient)), default=None)
    if last and last not in held and len(held) + 1 < len(ordered):
        held.append(last)
    return Split(tuple(p for p in ordered if p not in held), tuple(p for p in ordered if p in held))
