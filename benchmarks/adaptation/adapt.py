"""Compare methods of adaptation on real images, by domain, arm and seed.

``make bench-adapt`` runs every cell (domain, arm, seed) that has no result yet, in ``benchmarks/runs/adapt`` or in
``benchmarks/results/adapt.json``; ``--restart`` runs all again. It prints tables and writes that file, the tables in
``docs/results/adaptation.md`` and the figure beside it. Each arm is trained on the training and validation patients (it
holds some of them back itself) and is measured on the test patients, from one click, with five sets of clicks. ``make
bench-adapt QUICK=1`` takes at most ten minutes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from baps.blackbox import load_black_box
from baps.utils.atomic_write import atomic_write
from benchmarks.adaptation.arms import CORE as CORE_ARMS
from benchmarks.adaptation.arms import EVERYWHERE, ONCE, Arena, score, score_corrections
from benchmarks.adaptation.summary import all_tables, draw, headline, summarise
from benchmarks.earlier_runs import restore_runs
from benchmarks.page import write_between_marks
from benchmarks.paths import PAGES, PICTURES, README, RESULTS, RUNS
from benchmarks.real_data import DOMAINS, ROOT, Domain, slices

CORE = (
    "BTCV spleen, CT",
    "BTCV liver, CT",
    "CHAOS liver, MR",
    "hippocampus, MR",
    "white blood cell, microscopy",
)
MAX_IMAGES = 4000
_SECONDS = {
    "zero_shot": 10,
    "crop": 30,
    "best_of_several": 10,
    "white_box": 170,
    "zoom_and_white_box": 170,
    "zoom": 20,
    "spsa_gc_reference": 150,
    "spsa_gc_80000": 1400,
    "spsa_gc_reference_80000": 2500,
    "unet_from_scratch": 150,
}
"""Seconds of a run on one core, by arm, for the estimate; other arms take about ``_USUAL``."""
_USUAL = 90
_QUICK_ARMS = ("zero_shot", "window", "spsa_gc_fixed", "default", "zoom_and_white_box")

_CORRECTED = ("zero_shot", "default", "tone")
"""Arms that are also measured by box and by corrective clicks."""

console = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Cell:
    """One run: a domain, an arm, a seed and a number of images."""

    domain: str
    arm: str
    seed: int
    max_images: int

    def file(self, folder: Path) -> Path:
        """Return the file of its result."""
        name = "".join(c if c.isalnum() else "_" for c in self.domain)
        return folder / f"{name}-{self.arm}-{self.seed}-{self.max_images}.json"


def cells(quick: bool, seeds: int, only: str, arms: str) -> list[Cell]:
    """List the runs, seed by seed and arm by arm, so that an unfinished benchmark is informative too.

    The core domains are run with all arms and seeds, the others with few arms and one seed.
    """
    planned = set(arms.split(",")) if arms else {*CORE_ARMS, *ONCE}
    images = 1200 if quick else MAX_IMAGES
    names = [domain.name for domain in DOMAINS if only in domain.name]
    core, others = [n for n in names if n in CORE], [n for n in names if n not in CORE]
    if quick:
        core, others = [n for n in core if n in (CORE[0], CORE[2])], []
        planned &= set(_QUICK_ARMS)
    result = [
        Cell(domain, arm, seed, images)
        for seed in range(1 if quick else seeds)
        for group, group_arms in ((core, CORE_ARMS), ([] if seed else others, EVERYWHERE))
        for arm in group_arms
        for domain in group
        if arm in planned
    ]
    return result + [Cell(CORE[0], arm, 0, images) for arm in ONCE if arm in planned and not quick and CORE[0] in core]


def run(cell: Cell, cache: Path) -> tuple[Cell, dict[str, Any]]:
    """Run one cell in its own process."""
    torch.set_num_threads(1)
    domain = next(d for d in DOMAINS if d.name == cell.domain)
    examiner = load_black_box()
    side = examiner.capabilities.input_size
    training, test = _patients(domain, side, cell.seed, cache)
    arena = Arena(load_black_box(), examiner, training, test, cell.seed, cell.max_images)
    start = time.monotonic()
    black_box, adapter = {**CORE_ARMS, **ONCE}[cell.arm](arena)
    seconds = time.monotonic() - start
    kinds = ("click", "box") if cell.arm in _CORRECTED else ()
    return cell, {
        "domain": cell.domain,
        "arm": cell.arm,
        "seed": cell.seed,
        "max_images": cell.max_images,
        "weights_sha256": examiner.capabilities.weights_sha256,
        "by_patient": score(black_box, adapter, test),
        "black_box_images": arena.black_box.images_queried,
        "seconds": round(seconds, 1),
        "curve": arena.curve,
        "corrected": {kind: score_corrections(black_box, adapter, test, kind) for kind in kinds},
        **arena.notes,
    }


def _patients(domain: Domain, side: int, seed: int, cache: Path) -> tuple[dict[str, Any], list[Any]]:
    """Load the patients to train on and those to test on; slices are loaded once and cached for the other runs.

    A set of a few images without a split is split here: two thirds are for training, by the seed.
    """
    file = cache / f"{DOMAINS.index(domain)}.pickle"
    if not file.exists():
        training = {p[0].patient: p for part in ("train", "validation") for p in slices(domain, part, side, 24)}
        with atomic_write(file) as partial_file:
            partial_file.write_bytes(pickle.dumps((training, list(slices(domain, "test", side, 12)))))
    training, test = pickle.loads(file.read_bytes())  # noqa: S301  # This program has just written it.
    if training:
        return training, test
    order = np.random.default_rng([seed, 5]).permutation(len(test)).tolist()
    training_order = order[: max(1, len(order) * 2 // 3)]
    return {test[n][0].patient: test[n] for n in training_order}, [test[n] for n in order if n not in training_order]


def main(
    quick: Annotated[bool, typer.Option(help="Two domains, five arms, one seed, 1,200 images.")] = False,
    seeds: Annotated[int, typer.Option(help="Runs of each domain and arm.")] = 3,
    only: Annotated[str, typer.Option(help="Text in the names of the domains.")] = "",
    arms: Annotated[str, typer.Option(help="Arms, separated by commas. Default: all.")] = "",
    workers: Annotated[int, typer.Option(help="Number of parallel runs, one core each.")] = max(
        1, (os.cpu_count() or 2)
    ),
    runs: Annotated[Path, typer.Option(help="Folder of the results of runs; runs with a result are skipped.")] = RUNS
    / "adapt",
    out: Annotated[Path, typer.Option(help="The JSON file of all results.")] = RESULTS / "adapt.json",
    report_only: Annotated[bool, typer.Option(help="Run nothing; summarise the existing results.")] = False,
    restart: Annotated[bool, typer.Option(help="Run what has a result again.")] = False,
    publish: Annotated[bool, typer.Option(help="Write the tables into docs/results and the README.")] = False,
    figure: Annotated[Path, typer.Option(help="Picture file for Dice against images.")] = PICTURES / "adapt.png",
) -> None:
    """Run the benchmark."""
    if not ROOT.is_dir():
        raise SystemExit(f"There are no real images at {ROOT}. Set BAPS_REAL_DATA to the folder that holds them.")
    if quick:
        runs, out, figure = (
            runs.with_name("adapt-quick"),
            runs.with_name("adapt-quick.json"),
            runs.with_name("quick.png"),
        )
    runs.mkdir(parents=True, exist_ok=True)
    planned = cells(quick, seeds, only, arms)
    if not restart:
        restore_runs(out, lambda run: Cell(run["domain"], run["arm"], run["seed"], run["max_images"]).file(runs))
    pending = [] if report_only else [cell for cell in planned if restart or not cell.file(runs).exists()]
    share = 0.4 if quick else 1.0
    estimate = share * sum(_SECONDS.get(cell.arm, _USUAL) for cell in pending) / workers
    console.print(
        f"{len(pending)} of {len(planned)} runs to do, {workers} in parallel: about {estimate / 60:.0f} minutes."
    )
    # Each run has its own process, so that runs do not share state. Spinning threads would slow each other down.
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as cache, context.Pool(workers, maxtasksperchild=1) as pool:
        for number, (cell, result) in enumerate(pool.imap_unordered(partial(run, cache=Path(cache)), pending), start=1):
            with atomic_write(cell.file(runs)) as file:
                file.write_text(json.dumps(result, indent=1))
            dice = sum(result["by_patient"]) / len(result["by_patient"])
            console.print(f"{number}/{len(pending)} {cell.domain}, {cell.arm}, seed {cell.seed}: {dice:.3f}")
    done = [json.loads(cell.file(runs).read_text()) for cell in planned if cell.file(runs).exists()]
    summary = summarise(done)
    for line in all_tables(summary):
        print(line)
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"summary": summary, "runs": done}, indent=1))
    draw(done, figure)
    if publish:
        write_between_marks(all_tables(summary), PAGES / "adaptation.md", "bench-adapt")
        core = [row for row in summary if row["domain"] in CORE]
        write_between_marks(headline(core), README, "bench-adapt")
    console.print(f"{out}, {figure}")


if __name__ == "__main__":
    typer.run(main)
