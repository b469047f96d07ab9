"""Results of earlier runs are taken up in a fresh checkout."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.adaptation import adapt
from benchmarks.earlier_runs import restore_runs

RUN = {"domain": "spleen", "arm": "zoom", "seed": 1, "by_patient": [0.5]}


def test_runs_without_a_file_get_one(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    out.write_text(json.dumps({"summary": [], "runs": [RUN, {**RUN, "seed": 2}]}))
    (tmp_path / "1.json").write_text("newer")
    assert restore_runs(out, lambda run: tmp_path / f"{run['seed']}.json") == 1
    assert (tmp_path / "1.json").read_text() == "newer"
    assert json.loads((tmp_path / "2.json").read_text()) == {**RUN, "seed": 2}
    assert restore_runs(tmp_path / "none.json", lambda run: tmp_path / "x") == 0


def test_a_report_in_a_fresh_checkout_keeps_all_published_runs(tmp_path: Path) -> None:
    published = json.loads((adapt.RESULTS / "adapt.json").read_text())["runs"]
    cells = [adapt.Cell(run["domain"], run["arm"], run["seed"], run["max_images"]) for run in published]
    assert restore_runs(adapt.RESULTS / "adapt.json", lambda run: _file(run, tmp_path)) == len(set(cells))
    assert all(cell.file(tmp_path).exists() for cell in cells)


def _file(run, folder: Path) -> Path:  # type: ignore[no-untyped-def]
    return adapt.Cell(run["domain"], run["arm"], run["seed"], run["max_images"]).file(folder)
