"""Evaluate the unadapted bundled model: Dice on real images of kinds that it was not trained on, by click and by box.

``python -m benchmarks.adaptation.bundled`` prints a table and writes ``benchmarks/results/bundled.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from baps.blackbox import load_black_box
from baps.evaluation.scoring import score_slices
from benchmarks.paths import RESULTS
from benchmarks.real_data import DOMAINS, ROOT, slices


def main(
    split: Annotated[str, typer.Option(help="train, validation or test")] = "test",
    weights: Annotated[Path | None, typer.Option(help="Other weights than the bundled ones.")] = None,
    out: Annotated[Path | None, typer.Option()] = RESULTS / "bundled.json",
    max_slices: Annotated[int, typer.Option(help="Maximum number of slices per volume.")] = 12,
    patients: Annotated[int, typer.Option(help="Maximum number of patients per domain.")] = 1000,
    click_sets: int = 5,
    only: str = "",
) -> None:
    """Measure zero-shot Dice; a patient's Dice is the mean over slices and sets of clicks."""
    if not ROOT.is_dir():
        raise SystemExit(f"There are no real images at {ROOT}. Set BAPS_REAL_DATA to the folder that holds them.")
    black_box = load_black_box("bundled", weights)
    side = black_box.capabilities.input_size
    table = Table("domain", "patients", "slices", "click", "box", title=f"{split}, side {side}")
    results: dict[str, dict[str, float]] = {}
    for domain in DOMAINS:
        if only not in domain.name:
            continue
        # Sets of few images have no training split; all of them are test images.
        cases = list(slices(domain, split, side, max_slices))[:patients]
        if not cases:
            continue
        row: dict[str, float] = {"patients": len(cases), "slices": sum(map(len, cases))}
        for prompt in ("click", "box"):
            means = [score_slices(black_box, None, case, prompt, 0, click_sets).mean() for case in cases]
            row[prompt] = float(np.mean(means))
            row[f"{prompt}_std"] = float(np.std(means))
        results[domain.name] = row
        spread = [f"{row[p]:.3f} ± {row[f'{p}_std']:.3f}" for p in ("click", "box")]
        table.add_row(domain.name, str(row["patients"]), str(row["slices"]), *spread)
    table.add_row("mean", "", "", *(f"{np.mean([r[p] for r in results.values()]):.3f}" for p in ("click", "box")))
    Console().print(table)
    if out:
        record = {"split": split, "weights_sha256": black_box.capabilities.weights_sha256, "side": side}
        out.parent.mkdir(exist_ok=True)
        out.write_text(json.dumps({**record, "domains": results}, indent=1))


if __name__ == "__main__":
    typer.run(main)
