"""Split patients into those to train on and those to evaluate on; by hash, and persistently."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Set, Sized
from dataclasses import dataclass
from pathlib import Path

from baps.utils.atomic_write import atomic_write

MAX_CROSS_VALIDATED = 4
"""Up to this many patients are evaluated by cross-validation; with more, some are held back."""

MAX_CROSS_VALIDATED_SINGLE = 12
"""The same if there is only one slice or volume of each patient, see ``cross_validation_limit``."""

HELD_BACK_SHARE = 0.2


@dataclass(frozen=True)
class Split:
    """Patients by role.

    Attributes:
        training: patients to train on.
        held_back: patients that are used for evaluation only; empty with few patients.
        groups: up to ``MAX_CROSS_VALIDATED`` groups of patients that are left out in turn if nobody is held back; empty
            if there is only one patient.
    """

    training: tuple[str, ...]
    held_back: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...] = ()

    @property
    def folds(self) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """Training and held-out patients of every evaluated run; in cross-validation, a last run trains on all."""
        if self.held_back:
            return [(self.training, self.held_back)]
        return [(tuple(p for p in self.training if p not in held_out), held_out) for held_out in self.groups]

    @property
    def evaluation(self) -> str:
        """How an adapter is evaluated: ``held back``, ``leave some out`` or ``none, one patient only``."""
        return "held back" if self.held_back else "leave some out" if self.groups else "none, one patient only"


def patient_hash(patient: str) -> str:
    """Hash a patient's identifier, to name and order patients without revealing who they are.

    Args:
        patient: the identifier.

    Returns:
        16 hexadecimal digits.
    """
    return hashlib.sha256(f"baps split {patient}".encode()).hexdigest()[:16]


def cross_validation_limit(pieces: Mapping[str, Sized]) -> int:
    """Return up to how many patients are evaluated by cross-validation.

    With a single slice or volume of each patient the limit is higher, because a fifth of few slices is too small to
    evaluate on.

    Args:
        pieces: slices or volumes of each patient.

    Returns:
        The number of patients.
    """
    return (
        MAX_CROSS_VALIDATED_SINGLE
        if all(len(of_patient) == 1 for of_patient in pieces.values())
        else MAX_CROSS_VALIDATED
    )


def split_patients(
    patients: Iterable[str],
    memory: Path | None = None,
    trained_on: Set[str] = frozenset(),
    max_cross_validated: int = MAX_CROSS_VALIDATED,
) -> Split:
    """Split patients, the same way every time.

    Args:
        patients: the patients that have labels.
        memory: a JSON file that keeps the roles (by hash) in the order in which patients came, or None. A patient keeps
            the role when others come: patients that were trained on while there were few are not held back later,
            because the served adapter knows them.
        trained_on: hashes of the patients that the served adapter was trained on. Of those who came since, the latest
            is held out too: it is most like future patients, and it represents a new scanner. It may be trained on once
            another patient has come. With few patients, only those who came since are left out in turn.
        max_cross_validated: up to this many patients are cross-validated.

    Returns:
        The split.
    """
    ordered = sorted(set(patients), key=patient_hash)
    roles: dict[str, str] = json.loads(memory.read_text()) if memory and memory.exists() else {}
    cross_validate = len(ordered) <= max_cross_validated
    held_back_count = 0 if cross_validate else max(1, round(HELD_BACK_SHARE * len(ordered)))
    held_back = [p for p in ordered if roles.get(patient_hash(p)) == "held back"]
    for patient in ordered:
        if patient_hash(patient) not in roles:
            role = "held back" if len(held_back) < held_back_count else "training"
            roles[patient_hash(patient)] = role
            if role == "held back":
                held_back.append(patient)
    # All were held back for another organ: here each is left out in turn.
    all_held_back = len(held_back) == len(ordered)
    if not held_back and not cross_validate:  # The held-back patients are gone: the next one takes their place.
        roles[patient_hash(ordered[0])] = "held back"
        held_back.append(ordered[0])
    if memory:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(memory) as partial:
            partial.write_text(json.dumps(roles, indent=1))
    newcomers = [p for p in ordered if trained_on and patient_hash(p) not in trained_on]
    if cross_validate or all_held_back:
        groups = [tuple((newcomers or ordered)[n::MAX_CROSS_VALIDATED]) for n in range(MAX_CROSS_VALIDATED)]
        return Split(tuple(ordered), (), tuple(filter(None, groups)) if len(ordered) > 1 else ())
    arrival_order = list(roles)
    latest = max(newcomers, key=lambda patient: arrival_order.index(patient_hash(patient)), default=None)
    if latest and latest not in held_back and len(held_back) + 1 < len(ordered):
        held_back.append(latest)
    return Split(tuple(p for p in ordered if p not in held_back), tuple(p for p in ordered if p in held_back))
