"""Adapt to real images of many kinds, and measure what the adapters do for patients who did not train them.

``python -m benchmarks.adaptation.streams`` adapts to the training and validation patients of each domain as ``baps
adapt`` does, and scores the adapter and the unadapted model on the test patients, from one click. It prints what the
gate says after the training beside what is true on test patients, and writes ``benchmarks/results/streams.json``, which
``benchmarks.adaptation.gate`` replays. Takes a minute or two for each domain.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from baps.blackbox import load_black_box
from baps.evaluation.evidence import HARMFUL_LOSS
from baps.evaluation.gate import judge_training
from baps.training.adapt import adapt
from baps.training.settings import AdaptationSettings
from benchmarks.adaptation.arms import score
from benchmarks.paths import RESULTS
from benchmarks.real_data import DOMAINS, ROOT, Domain, slices

REPLAYED = (
    "BTCV spleen, CT",
    "BTCV liver, CT",
    "BTCV pancreas, CT",
    "CHAOS liver, MR",
    "hippocampus, MR",
    "white blood cell, microscopy",
    "polyp, endoscopy",
    "skin lesion, dermoscopy 2018",
    "lungs, chest X-ray",
)
_CLICK_SETS = 3


def measure(domain: Domain, settings: AdaptationSettings) -> dict[str, Any]:
    """Adapt to a domain and score the test patients.

    Args:
        domain: the domain.
        settings: the settings of the adaptation.

    Returns:
        What the gate says, and the differences of Dice of every patient.
    """
    black_box, examiner = load_black_box(), load_black_box()
    side = black_box.capabilities.input_size
    training = {p[0].patient: p for part in ("train", "validation") for p in slices(domain, part, side, 24)}
    test = list(slices(domain, "test", side, 12))
    result = adapt(black_box, training, settings)
    before, after = (np.array(score(examiner, arm, test, _CLICK_SETS)) for arm in (None, result.adapter))
    status = judge_training(result.scores.differences)
    gains = after - before
    return {
        "state": status.state.value,
        "serves": status.serves,
        "sentence": status.sentence(),
        "parts": result.record["parts"],
        "black_box_images": black_box.images_queried,
        "cross_fitted": [round(gain, 4) for gain in result.scores.differences.values()],
        "test": [round(gain, 4) for gain in gains.tolist()],
        "test_before": float(before.mean()),
        "test_after": float(after.mean()),
        "test_sd": float(gains.std(ddof=1)),
        "test_worse": int((gains < -HARMFUL_LOSS).sum()),
    }


def main(
    max_images: Annotated[int, typer.Option(help="Black-box images of each training.")] = 4000,
    seed: Annotated[int, typer.Option(help="Seed of the trainings.")] = 0,
    only: Annotated[str, typer.Option(help="Text in the names of the domains.")] = "",
    out: Annotated[Path, typer.Option(help="File of the results.")] = RESULTS / "streams.json",
) -> None:
    """Adapt to every domain, print what the gate says and what is true, and write the results."""
    if not ROOT.is_dir():
        raise SystemExit(f"There are no real images at {ROOT}. Set BAPS_REAL_DATA to the folder that holds them.")
    rows: dict[str, Any] = json.loads(out.read_text())["domains"] if only and out.exists() else {}
    for domain in (domain for domain in DOMAINS if domain.name in REPLAYED and only in domain.name):
        rows[domain.name] = measure(domain, AdaptationSettings(max_images=max_images, seed=seed))
        out.write_text(json.dumps({"max_images": max_images, "seed": seed, "domains": rows}, indent=1))
    table = Table(
        "domain", "after the training", "test patients", "unadapted", "adapted", "gain", "worse by .05", "images"
    )
    for name, row in rows.items():
        gain = f"{row['test_after'] - row['test_before']:+.3f} ± {row['test_sd']:.3f}"
        dice = f"{row['test_before']:.3f}", f"{row['test_after']:.3f}"
        counts = str(row["test_worse"]), str(row["black_box_images"])
        table.add_row(name, row["sentence"], str(len(row["test"])), *dice, gain, *counts)
    Console(width=200).print(table)


if __name__ == "__main__":
    typer.run(main)
