"""Compare methods that adapt an organ model from 1, 3 or 5 labelled volumes, by organ, number of shots and seed.

``make bench-fseft`` runs every cell (experiment, organ, arm, shots, seed) that has no file yet in
``benchmarks/runs/fseft``, prints tables and writes ``benchmarks/results/fseft.json`` and the tables in
``docs/results/organs.md``. Each arm is trained on patients drawn from the training split, and is measured on the test
patients, or, to choose settings, on the validation patients (``--split validation``). ``make bench-fseft QUICK=1``
takes at most fifteen minutes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markdown import Markdown

from baps.fseft.models import load_organ_model
from baps.utils.atomic_write import atomic_write
from benchmarks.fewshot.cells import ARMS, SEEDS, Cell, Source, cache_inputs, plan, run
from benchmarks.fewshot.tables import summarise, tables
from benchmarks.page import write_between_marks
from benchmarks.paths import PAGES, RESULTS, RUNS
from benchmarks.real_data import ROOT

T = TypeVar("T")

_MIN_WIDTH = 150
"""Minimum width of a table in characters; narrower tables are unreadable."""

console = Console(soft_wrap=True, highlight=False)


def run_in_process(work: Callable[..., T], *given: object) -> T:
    """Run a function in its own process, which leaves nothing to the next one and whose peak memory is its own.

    This process must stay small, because a new process counts its parent's memory in its first peak.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.fewshot.cells"])  # Importing torch and MONAI takes seconds.
    with ProcessPoolExecutor(1, context) as process:
        return process.submit(work, *given).result()


def run_all(
    todo: Sequence[Cell],
    runs: Path,
    workers: int,
    minutes: float,
    work: Callable[[Cell], dict[str, Any]],
) -> None:
    """Run cells in parallel and store the result of each; cells that do not start in time are skipped."""
    until = time.monotonic() + 60 * minutes

    def one(cell: Cell) -> tuple[Cell, dict[str, Any] | None]:
        return cell, work(cell) if time.monotonic() < until else None

    with ThreadPool(workers) as pool:
        for number, (cell, found) in enumerate(pool.imap_unordered(one, todo), start=1):
            if found is None:
                continue
            with atomic_write(cell.file(runs)) as file:
                file.write_text(json.dumps(found, indent=1))
            dice = [score["dice"] for score in found.get("scores", [])]
            outcome = f"{sum(dice) / len(dice):.3f}" if dice else found.get("why_not", "nobody has it")
            description = f"{cell.experiment} {cell.organ}, {cell.arm}, {cell.shots} shots, seed {cell.seed}"
            console.print(f"{number}/{len(todo)} {description}: {outcome} ({found.get('seconds', 0):.0f} s)")


def main(
    quick: Annotated[bool, typer.Option(help="An organ of each experiment, one shot, few arms, one seed.")] = False,
    seeds: Annotated[
        int,
        typer.Option(help="Draws of patients, and fits, of each organ and shots by the first arms; by the others one."),
    ] = SEEDS,
    only: Annotated[str, typer.Option(help="Experiments and organs with this in it: novel, liver, novel panc.")] = "",
    arms: Annotated[str, typer.Option(help="Arms, with commas; without it, all.")] = "",
    shots: Annotated[int, typer.Option(help="Learn from so many patients alone; 0 for all numbers of them.")] = 0,
    split: Annotated[str, typer.Option(help="Measure on test or validation patients.")] = "test",
    learning_rate: Annotated[
        float, typer.Option(help="Another learning rate, to choose it; on validation patients alone.")
    ] = 0,
    minutes: Annotated[float, typer.Option(help="Begin nothing after this time; it goes on the next time.")] = 6000,
    workers: Annotated[int, typer.Option(help="Runs at once, a core each.")] = max(1, (os.cpu_count() or 2)),
    model: Annotated[str, typer.Option(help="The foundation model, see ORGAN_MODELS.")] = "bundled",
    weights: Annotated[Path | None, typer.Option(help="Its checkpoint, which all but the bundled one need.")] = None,
    runs: Annotated[Path, typer.Option(help="Where each run's file lies; what is there is not run again.")] = RUNS
    / "fseft",
    out: Annotated[Path, typer.Option(help="The JSON of all.")] = RESULTS / "fseft.json",
    report_only: Annotated[bool, typer.Option(help="Run nothing; say what the files that are there say.")] = False,
    publish: Annotated[bool, typer.Option(help="Write the tables into docs/results/organs.md.")] = False,
) -> None:
    """Run the benchmark."""
    if not ROOT.is_dir():
        raise SystemExit(f"There are no real images at {ROOT}. Set BAPS_REAL_DATA to the folder that holds them.")
    if split not in ("test", "validation"):
        raise SystemExit(f"The split is test or validation, not {split}.")
    chosen = [name for name in arms.split(",") if name]
    if unknown := set(chosen) - set(ARMS):
        raise SystemExit(f"There is no arm {', '.join(sorted(unknown))}. Known ones: {', '.join(ARMS)}.")
    if learning_rate and split != "validation":
        raise SystemExit("A learning rate is chosen on the validation patients: add --split validation.")
    incomplete = quick or split != "test"
    if incomplete:
        runs = runs.with_name(f"{runs.name}-quick" if quick else f"{runs.name}-{split}")
    if incomplete or only or chosen or shots or seeds != SEEDS or model != "bundled":
        if publish:
            raise SystemExit("Only the whole bench on the test patients is published.")
        out = runs.with_suffix(".json")  # A part is not what the results file is for.
    runs.mkdir(parents=True, exist_ok=True)
    # Threads that spin would slow each other down, and every process would print MONAI's warnings.
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", PYTHONWARNINGS="ignore")
    wanted = plan(load_organ_model(model, weights), quick, seeds, only, chosen, split, shots, learning_rate)
    todo = [] if report_only else [cell for cell in wanted if not cell.file(runs).exists()]
    console.print(f"{len(todo)} of {len(wanted)} runs to go, {workers} at once.")
    source = Source(model, weights, runs / "readings")
    for cell in {cell.domain.folder: cell for cell in todo}.values():
        run_in_process(cache_inputs, cell, source, workers)
    run_all(todo, runs, workers, minutes, lambda cell: run_in_process(partial(run, source=source), cell))
    done = [json.loads(cell.file(runs).read_text()) for cell in wanted if cell.file(runs).exists()]
    summary = summarise(done)
    Console(width=max(console.width, _MIN_WIDTH)).print(Markdown("\n".join(tables(summary))))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"summary": summary, "runs": done}, indent=1) + "\n")
    if publish:
        write_between_marks(tables(summary), PAGES / "organs.md", "bench-fseft")
    console.print(str(out))


if __name__ == "__main__":
    typer.run(main)
