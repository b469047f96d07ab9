from __future__ import annotations

import pytest

from baps.errors import InputError
from benchmarks.fewshot.protocol import draw_shots

PATIENTS = [f"btcv_{n:02}" for n in range(6)]


@pytest.mark.parametrize("shots", [1, 3, 5])
def test_seeds_draw_different_patients(shots: int) -> None:
    draws = [draw_shots(PATIENTS, shots, seed) for seed in range(6)]
    assert all(len(set(patients)) == shots and set(patients) <= set(PATIENTS) for patients in draws)
    assert len({patients[0] for patients in draws}) == 6
    assert len(set(map(frozenset, draws))) == 6


def test_fewer_shots_are_a_subset_in_any_order_of_names() -> None:
    assert draw_shots(PATIENTS, 5, 1)[:3] == draw_shots(reversed(PATIENTS), 3, 1)
    assert draw_shots([*PATIENTS, *PATIENTS], 2, 7) == draw_shots(PATIENTS, 2, 1)


@pytest.mark.parametrize("shots", [0, 7])
def test_too_many_shots_are_refused(shots: int) -> None:
    with pytest.raises(InputError, match=f"{shots} patients cannot be drawn from 6"):
        draw_shots(PATIENTS, shots, 0)
