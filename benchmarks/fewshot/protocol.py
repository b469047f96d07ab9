"""Draw the patients to train on in a few-shot trial."""

from __future__ import annotations

from collections.abc import Iterable

from baps.errors import InputError
from baps.evaluation.splits import patient_hash


def draw_shots(patients: Iterable[str], shots: int, seed: int) -> tuple[str, ...]:
    """Draw patients by seed.

    Patients form a ring in the order of their hashes, and each seed starts one further: as many seeds as there are
    patients start with different ones. The patients of few shots are among those of more.

    Args:
        patients: patients who have the organ and are not tested on.
        shots: number of patients to draw.
        seed: seed of the trial.

    Returns:
        The patients.

    Raises:
        InputError: if there are fewer patients than shots.
    """
    ring = sorted(set(patients), key=patient_hash)
    if not 1 <= shots <= len(ring):
        raise InputError(f"{shots} patients cannot be drawn from {len(ring)} who have the organ. Draw fewer.")
    first = seed % len(ring)
    return tuple((ring[first:] + ring[:first])[:shots])
