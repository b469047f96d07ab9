"""The tables of the benchmark of 3D models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.adaptation.volumes import ARMS, CLICKS, summarise, tables


def cell(arm: str, seed: int, scores: dict[str, float], **more: Any) -> dict[str, Any]:
    clicks = {"by_clicks": [0.5 + 0.05 * n for n in range(CLICKS)], "hd95_by_clicks": [10.0, None, 8.0, 7.0, 6.0]}
    return {"domain": "spleen", "arm": arm, "seed": seed, "by_patient": scores, **clicks, **more}


RUNS = [
    cell("unadapted", 0, {"a": 0.4, "b": 0.6}),
    cell("unadapted", 1, {"a": 0.6, "b": 0.6}),
    cell("default", 0, {"a": 0.8, "b": 0.5}, predictions=300),
    cell("slices_adapted", 0, {"a": 0.7, "b": 0.9}),
]


def test_means_are_over_seeds_and_then_over_patients() -> None:
    spleen = summarise(RUNS)["spleen"]
    assert spleen["zero_shot"] == pytest.approx(0.55)
    assert spleen["adapted"] == pytest.approx(0.65)
    assert spleen["whole_organ_2d"] == pytest.approx(0.8)
    assert (spleen["predictions"], spleen["patients"]) == (300, 2)
    default = spleen["arms"]["default"]
    assert default["sd"] == pytest.approx(np.std([0.8, 0.5], ddof=1))
    assert default["lost"] == 1
    assert spleen["arms"]["unadapted"]["seeds"] == 2


def test_tables_have_a_column_for_each_arm_and_each_click() -> None:
    lines = tables(summarise(RUNS))
    assert lines[0].count("|") == len(ARMS) + 3
    assert lines[2].count("|") == len(ARMS) + 3
    assert "0.650 ± 0.212, 1 lost (1)" in lines[2]
    clicks = next(line for line in lines if line.startswith("| spleen | default | "))
    assert clicks.count("mm)") == CLICKS
