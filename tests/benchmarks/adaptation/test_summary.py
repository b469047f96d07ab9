from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.adaptation.summary import all_tables, draw, headline, summarise
from benchmarks.page import write_between_marks

CORRECTED = {"click": {"by_clicks": [0.5] * 10, "noc_85": 9.0, "noc_85_failures": 0.5}}


def _run(arm: str, dice: list[float], seed: int = 0, curve: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "domain": "organ", "arm": arm, "seed": seed, "max_images": 4000, "by_patient": dice, "black_box_images": 4000,
        "seconds": 10.0, "curve": curve or [], **more,
    }  # fmt: skip


@pytest.fixture
def runs() -> list[dict[str, Any]]:
    slow = [[0, 0.5], [2000, 0.6], [4000, 0.7]]
    fast = [[0, 0.5], [2000, 0.69], [4000, 0.7]]
    return [
        _run("zero_shot", [0.4, 0.6], corrected=CORRECTED),
        _run("zero_shot", [0.4, 0.6], seed=1, corrected=CORRECTED),
        _run("window", [0.5, 0.6]),
        _run("default", [0.6, 0.8], curve=fast, status="accepted", corrected=CORRECTED),
        _run("default", [0.7, 0.7], seed=1, curve=slow, status="rejected", rejected=0.456, corrected=CORRECTED),
        _run("zoom_and_white_box", [0.65, 0.85], curve=[[0, 0.5], [4000, 0.99]]),
    ]


def test_gains_are_relative_to_zero_shot_on_the_same_patients(runs: list[dict[str, Any]]) -> None:
    rows = {row["arm"]: row for row in summarise(runs)}
    assert rows["default"]["gain"] == pytest.approx(0.2)
    assert rows["default"]["gain_std"] == pytest.approx(0.0)
    assert rows["default"]["gain_std_patients"] == pytest.approx(0.1 / 2**0.5)
    assert rows["window"]["gain_std"] is None
    assert rows["default"]["white_box_share"] == pytest.approx(0.2 / 0.25)
    assert (rows["default"]["seeds"], rows["default"]["rejected"]) == (2, [0.456])
    assert rows["window"]["images_to_90"] is None


def test_patients_who_lost_are_counted_by_their_mean_over_seeds(runs: list[dict[str, Any]]) -> None:
    worse = [_run("window", [0.21, 0.6], seed=1), _run("crop", [0.34, 0.56])]
    rows = {row["arm"]: row for row in summarise([*runs, *worse])}
    assert rows["window"]["lost"] == 0  # +.10 and -.19 for the first patient.
    assert rows["crop"]["lost"] == 1


def test_images_to_nine_tenths_of_the_best_gain(runs: list[dict[str, Any]]) -> None:
    """0.68 is nine tenths of the way from 0.5 to 0.7; the white box does not count."""
    rows = {row["arm"]: row for row in summarise(runs)}
    assert rows["default"]["images_to_90"] == 3000


def test_runs_without_a_zero_shot_run_are_skipped(runs: list[dict[str, Any]]) -> None:
    alone = [_run("default", [0.6], seed=7)]
    assert summarise([*runs, *alone])[2]["seeds"] == 2


def test_tables_are_written_between_the_marks(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench-adapt begins -->\nold\n<!-- bench-adapt ends -->\nafter\n")
    summary = summarise(runs)
    write_between_marks([*all_tables(summary), *headline(summary)], page, "bench-adapt")
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| default (rejected: 0.456) | 2 | 0.700 | +0.200 ± 0.000 | 0.071 | 0 |" in text
    assert "| organ | 2 | 0 | 0.500 | 0.700 | +0.200 ± 0.071 |" in text


def test_domains_with_few_arms_share_a_table(runs: list[dict[str, Any]]) -> None:
    few = [
        {**_run("zero_shot", [0.3, 0.5], corrected=CORRECTED), "domain": "other"},
        {**_run("default", [0.4, 0.7], corrected=CORRECTED), "domain": "other"},
        {**_run("zero_shot", [0.3], corrected=CORRECTED), "domain": "not yet"},
    ]
    lines = all_tables(summarise([*runs, *few]))
    assert "| other | 2 | 0 | 1 | 0.400 | 0.550 | +0.150 ± 0.071 | 4,000 |  |  |" in lines
    assert sum("other" in line for line in lines) == 1
    assert not any("not yet" in line for line in lines)


def test_parts_that_every_core_domain_has_share_a_table(runs: list[dict[str, Any]]) -> None:
    lines = all_tables(summarise([*runs, _run("zoom", [0.5, 0.6])]))
    assert "| nothing | 0.500 | +0.000 | 4,000 |" in lines
    assert "| zoom | 0.550 | +0.050 | 4,000 |" in lines
    assert not any(line.startswith("| head |") for line in lines)


def test_figure_is_drawn(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    more = [_run(arm, [0.5], curve=[[0, 0.5], [4000, 0.6]]) for arm in ("cma_es", "tone")]
    draw([*runs, *more], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
