"""A hospital's archive: what does a click cost where the PACS has 100,000 series? Does the memory stay flat?

``make bench-archive`` starts a stand-in PACS (``archive_pacs.py``) in a process of its own and the real server on it.
It clicks on a series that was fetched before, in a row and after pauses that are longer than what is known of a series
holds, saves labels with MONAI Label's own client, and asks for next samples. It does the same with 1,000 series, and
clicks on the same series in a folder. It prints a table and writes ``benchmarks/results/archive.json``:

* ``click_overhead_ms_p50``: the time of a click from the request's first byte to the reply's last, without what the
  model took of it (the reply's Server-Timing); ``..._after_pause`` of clicks that ask the PACS again.
* ``folder_click_overhead_ms_p50``: the same of the series in a folder.
* ``pacs_requests_per_click``: of clicks after a pause, the most that one led to, counted by the PACS and with what the
  server asks in the background; ``..._in_a_row`` is the mean of clicks without pauses.
* ``rss_mb_start``, ``rss_mb_end``: memory of the server after a click and some next samples, and after everything.
* ``rss_growth_mb_1000_series``: what it grew by where the PACS has 1,000 series.

Run it with nothing else on the machine.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import nibabel
import numpy as np
import psutil
import requests
import typer
from monailabel.client import MONAILabelClient
from rich.console import Console
from rich.table import Table

from baps.demo.server import free_port, running, running_server
from benchmarks.interactive.clicks import Client, ReplyTimes
from benchmarks.paths import RESULTS
from benchmarks.performance.archive_pacs import SIDE, SLICES, make_image, modality, series_uid

LABELS = "ball=1,other=2"
_PAUSE = 32.0
"""Seconds, more than the server relies on what it knows of a series."""

console = Console(soft_wrap=True, highlight=False)


@contextmanager
def running_pacs(series: int, log: Path) -> Iterator[str]:
    """Run the stand-in in a process of its own; yields its DICOMweb address."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.performance.archive_pacs", str(port), str(series)]
    with running(command, os.environ, f"http://127.0.0.1:{port}/requests", log):
        yield f"http://127.0.0.1:{port}/dicom-web"


def asked(pacs: str) -> int:
    """Return how many requests the PACS had."""
    counts: dict[str, int] = requests.get(pacs.replace("/dicom-web", "/requests"), timeout=30).json()
    return sum(counts.values())


def click_in_a_row(client: Client, image: str, clicks: int) -> ReplyTimes:
    """Click on one slice, at places of their own."""
    found = ReplyTimes()
    for number in range(clicks):
        found.add(client.click(image, 20 + number % 24, 32, SLICES // 2))
    return found


def overhead(clicked: ReplyTimes) -> float:
    """Return the median of what a click took from end to end, without the model."""
    return float(np.median(np.subtract(clicked.total, clicked.model)))


def write_label(folder: Path, number: int) -> Path:
    """A ball where the series shows one, a little different for each number."""
    i, j, k = np.indices((SIDE, SIDE, SLICES))
    ball = (i - 32) ** 2 + (j - 32) ** 2 + ((k - 12) * 1.5) ** 2 < (10 + number) ** 2
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    affine[:2, 3] = 64.0
    file = folder / f"label_{number}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(ball.astype(np.uint8), affine), file)
    return file


def measure(series: int, clicks: int, pauses: int, samples: int, folder: Path) -> dict[str, Any]:
    """Start both, click, save and ask for samples."""
    os.environ["MONAI_LABEL_DATASTORE_CACHE_PATH"] = str(folder / "cache")
    settings = {"labels": LABELS, "adapters": str(folder / "adapters")}
    image = series_uid(next(n for n in range(series // 2, series) if modality(n) == "CT"))
    with (
        running_pacs(series, folder / "pacs.log") as pacs,
        running_server(pacs, folder / "server.log", settings) as (address, process),
    ):
        client = Client(address, "baps", {"label": "ball"})
        begun = time.perf_counter()
        client.click(image, 32, 32, SLICES // 2)
        first = time.perf_counter() - begun
        theirs, saves, nexts = MONAILabelClient(address, tmpdir=str(folder)), [], []
        for _ in range(samples):  # What is made at the first use of everything is no growth.
            theirs.next_sample("random", {})
        time.sleep(5)  # What was begun in the background is done.
        start, before = _rss_mb(process), asked(pacs)
        in_a_row = click_in_a_row(client, image, clicks)
        of_row = asked(pacs) - before
        paused, each = ReplyTimes(), []
        for number in range(pauses):
            time.sleep(_PAUSE)
            before = asked(pacs)
            paused.add(client.click(image, 25 + number, 32, SLICES // 2))
            time.sleep(2)
            each.append(asked(pacs) - before)
        for number in range(5):
            begun = time.perf_counter()
            info = {"label_info": [{"name": "ball", "idx": 1}]}
            theirs.save_label(image, str(write_label(folder, number)), params=info)
            saves.append(1000 * (time.perf_counter() - begun))
        before = asked(pacs)
        for _ in range(samples):
            begun = time.perf_counter()
            sample = theirs.next_sample("random", {})
            nexts.append(1000 * (time.perf_counter() - begun))
        of_samples = asked(pacs) - before
        status = theirs.info()["datastore"]
        click_in_a_row(client, image, clicks)
        return {
            "series": series,
            "first_click_s": round(first, 2),
            "clicks": clicks,
            "click_ms_p50": round(float(np.median(in_a_row.total)), 1),
            "click_overhead_ms_p50": round(overhead(in_a_row), 1),
            "click_overhead_ms_p50_after_pause": round(overhead(paused), 1),
            "pacs_requests_per_click": max(each),
            "pacs_requests_per_click_in_a_row": round(of_row / clicks, 3),
            "next_sample_ms_p50": round(float(np.median(nexts)), 1),
            "pacs_requests_per_next_sample": round(of_samples / samples, 1),
            "next_sample_says": sample.get("reason", ""),
            "save_ms_p50": round(float(np.median(saves)), 1),
            "total": status["total"],
            "completed": status["completed"],
            "rss_mb_start": round(start),
            "rss_mb_end": round(_rss_mb(process)),
        }


def measure_folder(clicks: int, folder: Path) -> float:
    """Click on the same series in a folder; the overhead of a click, ms."""
    studies = folder / "studies" / "series"
    studies.mkdir(parents=True)
    for k in range(SLICES):
        make_image(0, k).save_as(studies / f"{k:03}.dcm", write_like_original=False)
    settings = {"labels": LABELS, "adapters": str(folder / "adapters")}
    with running_server(studies.parent, folder / "folder.log", settings) as (address, _):
        client = Client(address, "baps", {"label": "ball"})
        client.click("series", 32, 32, SLICES // 2)
        time.sleep(5)
        return overhead(click_in_a_row(client, "series", clicks))


def _rss_mb(process: psutil.Process) -> float:
    return process.memory_info().rss / 1e6


def main(
    series: Annotated[int, typer.Option(help="Of the PACS.")] = 100_000,
    clicks: Annotated[int, typer.Option(help="In a row.")] = 200,
    pauses: Annotated[int, typer.Option(help="Clicks after a pause.")] = 4,
    samples: Annotated[int, typer.Option(help="Next samples.")] = 30,
    out: Annotated[Path, typer.Option()] = RESULTS / "archive.json",
) -> None:
    """Measure, print and write."""
    with tempfile.TemporaryDirectory() as parent:
        folders = [Path(parent) / name for name in ("small", "archive", "folder")]
        for folder in folders:
            folder.mkdir()
        small = measure(1000, clicks, 1, samples, folders[0])
        found = measure(series, clicks, pauses, samples, folders[1])
        found["folder_click_overhead_ms_p50"] = round(measure_folder(clicks, folders[2]), 1)
    found["rss_growth_mb_1000_series"] = small["rss_mb_end"] - small["rss_mb_start"]
    found["cpus"] = os.cpu_count()
    table = Table("measured", "value")
    for name, value in found.items():
        table.add_row(name, str(value))
    console.print(table)
    out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
