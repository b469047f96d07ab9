from __future__ import annotations

import pytest

from baps.errors import InputError
from baps.fseft.protocol import draw_shots

PATIENTS = [f"btcv_{n:02}" for n in range(6)]


@pytest.mark.parametrize("shots", [1, 3, 5])
def test_every_seed_draws_other_patients(shots: int) -> None:
    drawn = [draw_shots(PATIENTS, shots, seed) for seed in range(6)]
    assert all(len(set(patients)) == shots and set(patients) <= set(PATIENTS) for patients in drawn)
    assert len({patients[0] for patients in drawn}) == 6
    assert len(set(map(frozenset, drawn))) == 6


def test_fewer_shots_are_among_more_and_the_order_of_names_does_not_matter() -> None:
    assert draw_shots(PATIENTS, 5, 1)[:3] == draw_shots(reversed(PATIENTS), 3, 1)
    assert draw_shots([*PATIENTS, *PATIENTS], 2, 7) == draw_shots(PATIENTS, 2, 1)


@pytest.mark.parametrize("shots", [0, 7])
def test_what_cannot_be_drawn_is_refused(shots: int) -> None:
    with pytest.raises(InputError, match=f"{shots} patients cannot be drawn from 6"):
        draw_shots(PATIENTS, shots, 0)
