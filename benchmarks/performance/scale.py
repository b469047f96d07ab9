"""Measure the throughput of several replicas: images per second with 1, 2, 4 and 8 of them.

``make bench-scale`` adapts a remote model of 100 ms per image to the phantoms, and also sends it bare batches of 32
images, over as many connections as its server has instances. Without a head, because fitting one asks for no images.
It then asks the bundled model in one process and in two (``cpu,cpu``), which needs two idle CPU cores. ``PART=latency``
or ``PART=processes`` runs one half and keeps the figures of the other.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from baps.blackbox import BlackBox, RemoteSettings, load_black_box
from baps.demo.run import VALUE
from baps.evaluation.cases import Case, load_cases
from baps.prompts import Prompt
from baps.training.adapt import adapt
from baps.training.settings import AdaptationSettings
from benchmarks.paths import RESULTS, SAMPLE_DATA

SIDE, REPLICAS, STEP = 64, (1, 2, 4, 8), 32
"""Pixels of an image of the model with a set latency, numbers of replicas, and images of one step of a training."""


@contextmanager
def served(instances: int) -> Iterator[BlackBox]:
    """Serve the model of a set latency in a process of its own, and connect to each of its instances."""
    program = [sys.executable, "-m", "benchmarks.performance.latency_server", "--instances", str(instances)]
    process = subprocess.Popen(  # noqa: S603 (no shell)
        [*program, "--side", str(SIDE)], stdout=subprocess.PIPE, text=True
    )
    try:
        port = int(process.stdout.readline()) if process.stdout else 0
        address = f"http://127.0.0.1:{port}/latency"
        yield load_black_box("remote", remote=RemoteSettings(address, connections=instances))
    finally:
        process.kill()
        process.wait()


def bare_rate(black_box: BlackBox, calls: int) -> float:
    """Measure the images per second of calls as large as a step of a training."""
    side = black_box.capabilities.input_size
    images = np.random.default_rng(0).integers(0, 256, (STEP, side, side, 3)).astype(np.uint8)
    prompts = [Prompt(((side / 2, side / 2),))] * STEP
    black_box.segment(images, prompts)  # Replicas start with the first call.
    start = time.perf_counter()
    for _ in range(calls):
        black_box.segment(images, prompts)
    return calls * STEP / (time.perf_counter() - start)


def measure_latency(max_images: int) -> list[dict[str, Any]]:
    """Measure adaptations of the model with a set latency, and its bare batches."""
    files = sorted((SAMPLE_DATA / "ct" / "images").glob("*.nii.gz"))
    cases = [Case(file, SAMPLE_DATA / "ct" / "labels" / file.name, VALUE, file.name) for file in files]
    loaded, _ = load_cases(cases, SIDE, 8)
    slices = {patient: list(pieces) for patient, pieces in loaded.items()}
    rows: list[dict[str, Any]] = []
    for replicas in REPLICAS:
        with served(replicas) as black_box:
            bare = bare_rate(black_box, 2)
            start = time.perf_counter()
            adaptation = adapt(black_box, slices, AdaptationSettings(max_images=max_images, head="none"))
            seconds = time.perf_counter() - start
        weights = b"".join(value.numpy().tobytes() for _, value in sorted(adaptation.adapter.state_dict().items()))
        images = adaptation.record["black_box_images"]
        rates = {"images_per_second": images / seconds, "bare_images_per_second": bare}
        of_one = rows[0] if rows else rates
        rows.append(
            {
                "replicas": replicas,
                "images": images,
                **rates,
                "efficiency": images / seconds / (replicas * of_one["images_per_second"]),
                "bare_efficiency": bare / (replicas * of_one["bare_images_per_second"]),
                "adapter_sha256": hashlib.sha256(weights).hexdigest(),
            }
        )
    return rows


def measure_processes(calls: int) -> dict[str, float]:
    """Measure the bundled model in this process, with one thread and with two, and in two processes."""
    rates = {}
    for name, device, threads in (("one_thread", "cpu", 1), ("two_threads", "cpu", 2), ("two_processes", "cpu,cpu", 1)):
        torch.set_num_threads(threads)
        rates[name] = bare_rate(load_black_box(device=device), calls)
    return {**rates, "gain_of_two_processes": rates["two_processes"] / rates["one_thread"]}


def main(
    part: Annotated[str, typer.Option(help="latency, processes or all.")] = "all",
    max_images: Annotated[int, typer.Option(help="Maximum number of black-box images of each adaptation.")] = 400,
    calls: Annotated[int, typer.Option(help="Calls of 32 images to the bundled model.")] = 8,
    out: Annotated[Path, typer.Option()] = RESULTS / "scale.json",
) -> None:
    """Measure, print the figures and write them."""
    results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    if part in ("latency", "all"):
        results["load_average"] = os.getloadavg()[0]  # Other work on the machine makes the figures worse.
        results["latency"] = measure_latency(max_images)
        table = Table("replicas", "images", "adaptation, images/s", "of N times", "bare, images/s", "of N times")
        for row in results["latency"]:
            table.add_row(
                str(row["replicas"]), str(row["images"]), f"{row['images_per_second']:.1f}",
                f"{row['efficiency']:.2f}", f"{row['bare_images_per_second']:.1f}", f"{row['bare_efficiency']:.2f}",
            )  # fmt: skip
        Console().print(table)
        results["same_adapter"] = len({row["adapter_sha256"] for row in results["latency"]}) == 1
        Console().print("The adapters are equal." if results["same_adapter"] else "The adapters differ.")
    if part in ("processes", "all"):
        results["processes"] = measure_processes(calls)
        Console().print(results["processes"])
    out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    typer.run(main)
