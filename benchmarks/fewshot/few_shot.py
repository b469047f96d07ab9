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
from benchmarks.earlier_runs import restore_runs
from benchmarks.fewshot.cells import ARMS, SEEDS, Cell, Source, cache_inputs, plan, run
from benchmarks.fewshot.nnunet import NNUNET, nnunet_python
from benchmarks.fewshot.tables import summarise, tables
from benchmarks.page import write_between_marks
from benchmarks.paths import PAGES, RESULTS, RUNS
from benchmarks.real_data import ROOT

T = TypeVar("T")

_MIN_WIDTH = 150
"""Minimum width of a table in characters; narrower tables are unreadable."""

console = Console(soft_wrap=True, highlight=False)


def run_in_process(work: Callable[..., T], *arguments: object) -> T:
    """Run a function in its own process, which leaves nothing to the next one and whose peak memory is its own.

    This process must stay small, because a new process counts its parent's memory in its first peak.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.fewshot.cells"])  # Importing torch and MONAI takes seconds.
    with ProcessPoolExecutor(1, context) as process:
        return process.submit(work, *arguments).result()


def run_all(
    todo: Sequence[Cell],
    runs: Path,
    workers: int,
    minutes: float,
    work: Callable[[Cell], dict[str, Any]],
) -> None:
    """Run cells in parallel and store the result of each; cells that do not start in time are skipped."""
    deadline = time.monotonic() + 60 * minutes

    def run_one(cell: Cell) -> tuple[Cell, dict[str, Any] | None]:
        return cell, work(cell) if time.monotonic() < deadline else None

    with ThreadPool(workers) as pool:
        for number, (cell, result) in enumerate(pool.imap_unordered(run_one, todo), start=1):
            if result is None:
                continue
            with atomic_write(cell.file(runs)) as file:
                file.write_text(json.dumps(result, indent=1))
            dice = [score["dice"] for score in result.get("scores", [])]
            outcome = f"{sum(dice) / len(dice):.3f}" if dice else result.get("why_not", "no patient has the organ")
            description = f"{cell.experiment} {cell.organ}, {cell.arm}, {cell.shots} shots, seed {cell.seed}"
            console.print(f"{number}/{len(todo)} {description}: {outcome} ({result.get('seconds', 0):.0f} s)")


def count_runs(out: Path) -> int:
    """Count the runs of a results file, which may be missing."""
    return len(json.loads(out.read_text())["runs"]) if out.exists() else 0


def main(
    quick: Annotated[bool, typer.Option(help="An organ of each experiment, one shot, few arms, one seed.")] = False,
    seeds: Annotated[
        int,
        typer.Option(help="Number of seeds, each with its own patients and fit. Some arms always run once."),
    ] = SEEDS,
    only: Annotated[
        str, typer.Option(help="Text in the names of experiments and organs, such as novel, liver or novel panc.")
    ] = "",
    arms: Annotated[str, typer.Option(help="Arms, separated by commas. Default: all.")] = "",
    shots: Annotated[int, typer.Option(help="Train on this number of patients only; 0 for all numbers.")] = 0,
    split: Annotated[str, typer.Option(help="Measure on test or validation patients.")] = "test",
    learning_rate: Annotated[float, typer.Option(help="Learning rate to try, on validation patients only.")] = 0,
    minutes: Annotated[float, typer.Option(help="Start no run after this time; the next call continues.")] = 6000,
    workers: Annotated[int, typer.Option(help="Number of parallel runs, one core each.")] = max(
        1, (os.cpu_count() or 2)
    ),
    model: Annotated[str, typer.Option(help="The foundation model, see ORGAN_MODELS.")] = "bundled",
    weights: Annotated[
        Path | None, typer.Option(help="Checkpoint of the model, required except for the bundled one.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of the results of runs; runs with a result are skipped.")] = RUNS
    / "fseft",
    out: Annotated[Path, typer.Option(help="The JSON file of all results.")] = RESULTS / "fseft.json",
    report_only: Annotated[bool, typer.Option(help="Run nothing; summarise the existing results.")] = False,
    publish: Annotated[bool, typer.Option(help="Write the tables into docs/results/organs.md.")] = False,
) -> None:
    """Run the benchmark."""
    if not ROOT.is_dir():
        raise SystemExit(f"There are no real images at {ROOT}. Set BAPS_REAL_DATA to the folder that holds them.")
    if split not in ("test", "validation"):
        raise SystemExit(f"The split is test or validation, not {split}.")
    selected_arms = [name for name in arms.split(",") if name]
    if unknown := set(selected_arms) - set(ARMS):
        raise SystemExit(f"Unknown arm: {', '.join(sorted(unknown))}. Known arms: {', '.join(ARMS)}.")
    if learning_rate and split != "validation":
        raise SystemExit("A learning rate is chosen on the validation patients: add --split validation.")
    incomplete, results = quick or split != "test", out
    if incomplete:
        runs = runs.with_name(f"{runs.name}-quick" if quick else f"{runs.name}-{split}")
    if incomplete or only or selected_arms or shots or seeds != SEEDS or model != "bundled":
        if publish:
            raise SystemExit("Only the whole benchmark on the test patients can be published. Omit --publish.")
        out = runs.with_suffix(".json")  # The results file is for whole runs only.
    runs.mkdir(parents=True, exist_ok=True)
    if not incomplete:
        restore_runs(results, lambda result: Cell.of_run(result).file(runs))
    # Threads that spin would slow each other down, and every process would print MONAI's warnings.
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", PYTHONWARNINGS="ignore")
    planned = plan(load_organ_model(model, weights), quick, seeds, only, selected_arms, split, shots, learning_rate)
    todo = [] if report_only else [cell for cell in planned if not cell.file(runs).exists()]
    if nnunet_python() is None and any(cell.arm == NNUNET for cell in todo):
        console.print(
            "The arm nnunet is left out: set BAPS_NNUNET_PYTHON to the Python of an environment with nnunetv2."
        )
        todo = [cell for cell in todo if cell.arm != NNUNET]
    console.print(f"{len(todo)} of {len(planned)} runs to do, {workers} in parallel.")
    source = Source(model, weights, runs / "feature_cache")
    for cell in {cell.domain.folder: cell for cell in todo if cell.arm != NNUNET}.values():
        run_in_process(cache_inputs, cell, source, workers)
    run_all(todo, runs, workers, minutes, lambda cell: run_in_process(partial(run, source=source), cell))
    done = [json.loads(cell.file(runs).read_text()) for cell in planned if cell.file(runs).exists()]
    summary = summarise(done)
    Console(width=max(console.width, _MIN_WIDTH)).print(Markdown("\n".join(tables(summary))))
    out.parent.mkdir(parents=True, exist_ok=True)
    if out == results and (earlier := count_runs(out)) > len(done):
        raise SystemExit(
            f"{out} has {earlier} runs, and of those that are planned now there are {len(done)}. It and the page "
            "stay as they are: run the rest first, or remove the file."
        )
    out.write_text(json.dumps({"summary": summary, "runs": done}, indent=1) + "\n")
    if publish:
        write_between_marks(tables(summary), PAGES / "organs.md", "bench-fseft")
    console.print(str(out))


if __name__ == "__main__":
    typer.run(main)
