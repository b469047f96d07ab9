"""Which value means which label."""

from __future__ import annotations

from lib.labelled import label_values


def test_what_was_said_at_saving_wins_over_the_sites_numbers() -> None:
    info = {"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]}
    assert label_values(info, {"spleen": 1, "liver": 6}) == {"liver": 1, "spleen": 2}


def test_without_it_the_sites_numbers_hold() -> None:
    assert label_values({"ts": 1}, {"spleen": 1, "liver": 6}) == {"spleen": 1, "liver": 6}
