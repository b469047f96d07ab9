from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.fewshot.tables import summarise, tables
from benchmarks.page import write_between_marks
from benchmarks.paths import PAGES


def _run(
    arm: str,
    organ: str,
    dice: float,
    shots: int = 1,
    seed: int = 0,
    experiment: str = "shift",
    **with_incomplete_seed: Any,
) -> dict[str, Any]:
    scores = [
        {"patient": "a", "dice": dice - 0.1, "hd95": 10.0, "surface": 2.0},
        {"patient": "b", "dice": dice + 0.1, "hd95": 20.0, "surface": 4.0},
    ]
    costs = {"parameters": 7789, "seconds": 12.4, "epochs": [30, 40], "memory_mib": 900} if shots else {}
    return {
        "experiment": experiment, "organ": organ, "arm": arm, "shots": shots, "seed": seed, "scores": scores,
        **costs, **with_incomplete_seed,
    }  # fmt: skip


@pytest.fixture
def runs() -> list[dict[str, Any]]:
    return [
        *(_run("unadapted", organ, 0.3, shots=0) for organ in ("liver", "spleen")),
        *(
            _run("spatial", organ, dice, 1, seed)
            for seed, dice in ((0, 0.5), (1, 0.7))
            for organ in ("liver", "spleen")
        ),
        *(_run("spatial", organ, 0.8, 3) for organ in ("liver", "spleen")),
        _run("full", "liver", 0.9),
        *(
            {"experiment": "shift", "organ": organ, "arm": "lora", "shots": shots, "seed": 0, "why_not": "No blocks."}
            for organ in ("liver", "spleen")
            for shots in (1, 3)
        ),
        _run("unadapted", "aorta", 0.6, 0, experiment="known"),
        _run("unadapted", "liver", 0.8, 0, experiment="known"),
    ]


def _cells(lines: list[str], first: str) -> list[str]:
    (line,) = [line for line in lines if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_means_over_organs_and_standard_deviations_over_seeds(runs: list[dict[str, Any]]) -> None:
    rows = {(row["experiment"], row["arm"], row["shots"]): row for row in summarise(runs)}
    row = rows["shift", "spatial", 1]
    assert (row["dice"], row["dice_std"]) == (pytest.approx(0.6), pytest.approx(0.1))
    assert (row["hd95"], row["surface"], row["missed"], row["epochs"], row["seeds"]) == (15, 3, 0, 35, 2)
    assert row["by_organ"]["liver"]["dice_std"] == pytest.approx(0.1)
    assert rows["shift", "unadapted", 0]["dice"] == pytest.approx(0.3)
    assert rows["shift", "lora", 1]["why_not"] == "No blocks."


def test_seed_counts_only_if_every_organ_was_run(runs: list[dict[str, Any]]) -> None:
    assert not any(row["arm"] == "full" for row in summarise(runs))
    with_incomplete_seed = [*runs, _run("spatial", "liver", 0.1, 1, seed=2)]
    assert summarise(with_incomplete_seed)[1] == summarise(runs)[1]


def test_empty_masks_are_counted_and_not_averaged(runs: list[dict[str, Any]]) -> None:
    for run in runs:
        if run["arm"] == "spatial" and run["shots"] == 3:
            run["scores"][1] |= {"hd95": None, "surface": None, "dice": 0.0}
    row = next(row for row in summarise(runs) if (row["arm"], row["shots"]) == ("spatial", 3))
    assert (row["hd95"], row["surface"], row["missed"]) == (10, 2, 0.5)
    for run in runs:
        if run["arm"] == "spatial":
            run["scores"] = [{"patient": "a", "dice": 0.0, "hd95": None, "surface": None}]
    cells = _cells(tables(summarise(runs)), "spatial")
    assert cells[4:7] == ["– / –", "– / –", "100% / 100%"]


def test_table_cells(runs: list[dict[str, Any]]) -> None:
    lines = tables(summarise(runs))
    assert _cells(lines, "spatial") == [
        "spatial", "0.600 ± 0.100", "0.800", "2 / 1", "15.0 / 15.0", "3.0 / 3.0", "0% / 0%", "7,789", "35 / 35",
        "12 / 12", "900 / 900",
    ]  # fmt: skip
    assert _cells(lines, "unadapted")[:4] == ["unadapted", "0.300", "0.300", "1 / 1"]
    assert _cells(lines, "lora") == ["lora", *["n/a"] * 10]
    assert _cells(lines, "mean") == ["mean", "0.700", "15.0", "3.0"]
    one_shot = [run for run in runs if run["shots"] != 3]
    assert _cells(tables(summarise(one_shot)), "spatial")[1:4] == ["0.600 ± 0.100", "2", "15.0"]
    with_incomplete_shots = [*one_shot, *(_run("scratch", organ, 0.2, 3) for organ in ("liver", "spleen"))]
    assert _cells(tables(summarise(with_incomplete_shots)), "spatial")[1:4] == ["0.600 ± 0.100", "–", "2 / –"]
    assert _cells(tables(summarise(with_incomplete_shots)), "scratch")[1:4] == ["–", "0.200", "– / 1"]


def test_docs_page_has_marks_for_the_tables(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text((PAGES / "organs.md").read_text())
    before = page.read_text()
    write_between_marks(tables(summarise(runs)), page, "bench-fseft")
    assert "| aorta | 0.600 | 15.0 | 3.0 |" in page.read_text()
    write_between_marks([], page, "bench-fseft")
    outside = [text.split("<!-- bench-fseft begins -->")[0] for text in (before, page.read_text())]
    assert outside[0] == outside[1]
