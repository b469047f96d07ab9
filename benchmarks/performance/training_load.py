"""Measure the times of clicks while a training runs, and the memory of a training by the number of volumes.

``python -m benchmarks.performance.training_load`` uses the phantoms of the repository, prints a table and writes
``benchmarks/results/training_load.json``. Run it with nothing else on the machine.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from monailabel.client import MONAILabelClient
from rich.console import Console
from rich.table import Table

from baps.blackbox import load_black_box
from baps.demo.run import VALUE, read_organ, save_labels
from baps.demo.server import running_server
from baps.evaluation.cases import Case, load_cases
from baps.training.adapt import adapt
from baps.training.settings import AdaptationSettings
from benchmarks.paths import RESULTS, SAMPLE_DATA

SAMPLES = SAMPLE_DATA / "ct"
VOLUMES = (10, 100, 1000)
app = typer.Typer()


SAMPLES = SAMPLE_DATA / "ct"


@app.command()
def memory(volumes: int) -> None:
    """Adapt to a number of volumes, each a phantom under its own name, and print the peak memory in MB."""
    files = sorted((SAMPLES / "images").glob("*.nii.gz"))
    cases = [
        Case(files[n % len(files)], SAMPLES / "labels" / files[n % len(files)].name, VALUE, str(n))
        for n in range(volumes)
    ]
    black_box = load_black_box(device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        slices, _ = load_cases(cases, black_box.capabilities.input_size, 24, Path(folder))
        adapt(black_box, slices, AdaptationSettings(max_images=600))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def click(client: MONAILabelClient, case: str, voxel: tuple[int, int, int]) -> float:
    """Measure one click at the client, in milliseconds."""
    request = {"label": "spleen", "foreground": [list(voxel)], "background": [], "slice": voxel[2]}
    start = time.perf_counter()
    client.infer("zero_shot", case, request)
    return (time.perf_counter() - start) * 1000


def clicks(client: MONAILabelClient, case: str, voxels: list[tuple[int, int, int]]) -> dict[str, float]:
    """Measure a first click on each slice and a second one: median and longest time."""
    first, repeat = ([click(client, case, voxel) for voxel in voxels] for _ in range(2))
    return {
        "first_click_ms": float(np.median(first)),
        "first_click_longest_ms": max(first),
        "repeat_click_ms": float(np.median(repeat)),
        "repeat_click_longest_ms": max(repeat),
    }


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    out: Annotated[Path, typer.Option()] = RESULTS / "training_load.json",
) -> None:
    """Run the benchmark."""
    if context.invoked_subcommand:
        return
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (SAMPLES / "images").glob("*.nii.gz"))
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        settings = {"labels": "spleen=1", "adapters": f"{folder}/adapters"}
        studies = Path(folder) / "studies"
        studies.mkdir()
        for case in cases:
            (studies / f"{case}.nii.gz").symlink_to(SAMPLES / "images" / f"{case}.nii.gz")
        with running_server(studies, Path(folder) / "server.log", settings) as (address, _):
            client = MONAILabelClient(address, tmpdir=folder)
            save_labels(client, SAMPLES, cases[:-2])
            voxels = {case: _spleen_voxels(case) for case in cases[-2:]}
            click(client, cases[0], _spleen_voxels(cases[0])[0])  # Loads the model.
            figures["idle"] = clicks(client, cases[-2], voxels[cases[-2]])
            client.train_start("baps", {"max_images": 4000})
            while not client.info()["train_stats"]["baps"].get("black_box_images"):
                time.sleep(0.2)
            figures["training"] = clicks(client, cases[-1], voxels[cases[-1]])
            client.train_stop()
    command = [sys.executable, "-m", "benchmarks.performance.training_load", "memory"]
    peaks = {
        count: int(subprocess.run([*command, str(count)], capture_output=True, text=True, check=True).stdout)  # noqa: S603
        for count in VOLUMES
    }
    figures["peak_memory_mb"] = peaks
    table = Table("", "first click, ms", "repeated click, ms")
    for name in ("idle", "training"):
        row: dict[str, float] = figures[name]  # type: ignore[assignment]
        table.add_row(
            name,
            f"{row['first_click_ms']:.0f} (longest {row['first_click_longest_ms']:.0f})",
            f"{row['repeat_click_ms']:.0f} (longest {row['repeat_click_longest_ms']:.0f})",
        )
    Console().print(table)
    Console().print("Peak memory of an adaptation: " + ", ".join(f"{n} volumes {mb} MB" for n, mb in peaks.items()))
    out.write_text(json.dumps(figures, indent=1))


def _spleen_voxels(case: str) -> list[tuple[int, int, int]]:
    """Choose a voxel of the spleen on each slice that shows it."""
    _, organ = read_organ(SAMPLES, case)
    voxels = []
    for k in np.flatnonzero(organ.any((0, 1))):
        inside = np.argwhere(organ[:, :, k])
        i, j = inside[len(inside) // 2]
        voxels.append((int(i), int(j), int(k)))
    return voxels


if __name__ == "__main__":
    app()
