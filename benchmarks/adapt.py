"""Does the adaptation help on real images? Dice on test patients, zero-shot against adapted, by domain and seed.

``python benchmarks/adapt.py`` adapts the bundled model on the training and validation patients of each domain (the
check holds some of them back), measures on the test patients, prints a table and writes
``benchmarks/results/adapt.json``. The test patients are touched once, by the last measurement.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from baps.adaptation.adapt import adapt
from baps.adaptation.scoring import score_slices
from baps.adaptation.settings import AdaptationSettings
from baps.blackbox import load_black_box
from real_data import DOMAINS, ROOT, slices

CORE = (
    "BTCV spleen, CT",
    "BTCV liver, CT",
    "CHAOS liver, MR",
    "hippocampus, MR",
    "white blood cell, microscopy",
)


def main(
    seeds: Annotated[int, typer.Option(help="Runs of each domain.")] = 1,
    max_images: Annotated[int, typer.Option(help="Black-box images of a run, check included.")] = 4000,
    optimiser: str = "prompt_space",
    visual_prompt: str = "basis",
    click_sets: int = 5,
    out: Annotated[Path, typer.Option()] = Path(__file__).parent / "results" / "adapt.json",
) -> None:
    """Run the bench."""
    if not ROOT.is_dir():
        raise SystemExit(f"There are no real images at {ROOT}. Set BAPS_REAL_DATA to the folder that holds them.")
    black_box = load_black_box()
    side = black_box.capabilities.input_side
    table = Table("domain", "zero-shot", "adapted", "gain", "published", "images", "seconds")
    results = []
    for domain in (d for d in DOMAINS if d.name in CORE):
        training = {p[0].patient: p for split in ("train", "validation") for p in slices(domain, split, side, 24)}
        test = list(slices(domain, "test", side, 12))
        for seed in range(seeds):
            begun, asked = time.monotonic(), black_box.images_asked
            settings = AdaptationSettings(
                seed=seed, max_images=max_images, optimiser=optimiser, visual_prompt=visual_prompt
            )
            found = adapt(black_box, training, settings)
            images, seconds = black_box.images_asked - asked, time.monotonic() - begun
            before, after = (
                np.array([score_slices(black_box, arm, p, "click", 1000, click_sets).mean() for p in test])
                for arm in (None, found.visual_prompt)
            )
            verdict = found.verdict
            row = {
                "domain": domain.name,
                "seed": seed,
                "test_patients": len(test),
                "zero_shot": float(before.mean()),
                "adapted": float(after.mean()),
                "gain": float((after - before).mean()),
                "gain_std_over_patients": float((after - before).std()),
                "published": bool(verdict and verdict.better),
                "black_box_images": images,
                "seconds": round(seconds, 1),
            }
            results.append(row)
            gain = f"{row['gain']:+.3f} ± {row['gain_std_over_patients']:.3f}"
            said = "yes" if row["published"] else "no"
            table.add_row(
                domain.name, f"{before.mean():.3f}", f"{after.mean():.3f}", gain, said, str(images), f"{seconds:.0f}"
            )
    Console().print(table)
    out.parent.mkdir(exist_ok=True)
    record = {
        "weights_sha256": black_box.capabilities.weights_sha256,
        "optimiser": optimiser,
        "visual_prompt": visual_prompt,
        "max_images": max_images,
        "runs": results,
    }
    out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    typer.run(main)
