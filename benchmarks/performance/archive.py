"""Measure the time of a click and the memory of the server on a PACS with 100,000 series.

``make bench-archive`` starts a simulated PACS (``archive_pacs.py``) in a process of its own, and the real server on
it. It clicks on a series that is already cached, without pauses and after pauses that are longer than the server's
cache of series information lasts, saves labels with MONAI Label's own client, and requests next samples. It does the
same with 1,000 series, and clicks on the same series in a folder. It prints a table and writes
``benchmarks/results/archive.json``:

* ``click_overhead_ms_p50``: median time of a click from the request's first byte to the reply's last, minus the time
  of the model (the reply's Server-Timing); ``..._after_pause``: of clicks that query the PACS again.
* ``folder_click_overhead_ms_p50``: the same for the series in a folder.
* ``pacs_requests_per_click``: maximum number of requests to the PACS for a click after a pause, including those in
  the background, as the PACS counts them; ``..._in_a_row``: mean over clicks without pauses.
* ``rss_mb_start``, ``rss_mb_end``: memory of the server after a click and some next samples, and at the end.
* ``rss_growth_mb_1000_series``: growth of the memory if the PACS has 1,000 series.

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
from benchmarks.performance.archive_pacs import IMAGE_SIZE, SLICES, make_image, modality, series_uid

LABELS = "ball=1,other=2"
_PAUSE_SECONDS = 32.0
"""Longer than the server caches the information about a series."""

console = Console(soft_wrap=True, highlight=False)


@contextmanager
def running_pacs(series: int, log: Path) -> Iterator[str]:
    """Run the simulated PACS in a process of its own; yields its DICOMweb address."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.performance.archive_pacs", str(port), str(series)]
    with running(command, os.environ, f"http://127.0.0.1:{port}/requests", log):
        yield f"http://127.0.0.1:{port}/dicom-web"


def request_count(pacs: str) -> int:
    """Return the number of requests that the PACS has received."""
    counts: dict[str, int] = requests.get(pacs.replace("/dicom-web", "/requests"), timeout=30).json()
    return sum(counts.values())


def click_without_pauses(client: Client, image: str, clicks: int) -> ReplyTimes:
    """Click repeatedly on one slice, at different positions."""
    times = ReplyTimes()
    for number in range(clicks):
        times.add(client.click(image, 20 + number % 24, 32, SLICES // 2))
    return times


def overhead(times: ReplyTimes) -> float:
    """Return the median time of a click from end to end without the model, ms."""
    return float(np.median(np.subtract(times.total, times.model)))


def write_label(folder: Path, number: int) -> Path:
    """Write a label of the ball in the series, of a different radius for each number."""
    i, j, k = np.indices((IMAGE_SIZE, IMAGE_SIZE, SLICES))
    ball = (i - 32) ** 2 + (j - 32) ** 2 + ((k - 12) * 1.5) ** 2 < (10 + number) ** 2
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    affine[:2, 3] = 64.0
    file = folder / f"label_{number}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(ball.astype(np.uint8), affine), file)
    return file


def measure(series: int, clicks: int, pauses: int, samples: int, folder: Path) -> dict[str, Any]:
    """Start the PACS and the server, click, save labels and request next samples."""
    os.environ["MONAI_LABEL_DATASTORE_CACHE_PATH"] = str(folder / "cache")
    settings = {"labels": LABELS, "adapters": str(folder / "adapters")}
    image = series_uid(next(n for n in range(series // 2, series) if modality(n) == "CT"))
    with (
        running_pacs(series, folder / "pacs.log") as pacs,
        running_server(pacs, folder / "server.log", settings) as (address, process),
    ):
        client = Client(address, "baps", {"label": "ball"})
        start = time.perf_counter()
        client.click(image, 32, 32, SLICES // 2)
        first_seconds = time.perf_counter() - start
        monai_client, save_times, sample_times = MONAILabelClient(address, tmpdir=str(folder)), [], []
        for _ in range(samples):  # Memory of the first use of each route does not count as growth.
            monai_client.next_sample("random", {})
        time.sleep(5)  # Lets background work finish.
        rss_start, before = _rss_mb(process), request_count(pacs)
        in_a_row = click_without_pauses(client, image, clicks)
        requests_in_a_row = request_count(pacs) - before
        paused, requests_after_pause = ReplyTimes(), []
        for number in range(pauses):
            time.sleep(_PAUSE_SECONDS)
            before = request_count(pacs)
            paused.add(client.click(image, 25 + number, 32, SLICES // 2))
            time.sleep(2)
            requests_after_pause.append(request_count(pacs) - before)
        for number in range(5):
            start = time.perf_counter()
            info = {"label_info": [{"name": "ball", "idx": 1}]}
            monai_client.save_label(image, str(write_label(folder, number)), params=info)
            save_times.append(1000 * (time.perf_counter() - start))
        before = request_count(pacs)
        for _ in range(samples):
            start = time.perf_counter()
            sample = monai_client.next_sample("random", {})
            sample_times.append(1000 * (time.perf_counter() - start))
        requests_for_samples = request_count(pacs) - before
        status = monai_client.info()["datastore"]
        click_without_pauses(client, image, clicks)
        return {
            "series": series,
            "first_click_s": round(first_seconds, 2),
            "clicks": clicks,
            "click_ms_p50": round(float(np.median(in_a_row.total)), 1),
            "click_overhead_ms_p50": round(overhead(in_a_row), 1),
            "click_overhead_ms_p50_after_pause": round(overhead(paused), 1),
            "pacs_requests_per_click": max(requests_after_pause),
            "pacs_requests_per_click_in_a_row": round(requests_in_a_row / clicks, 3),
            "next_sample_ms_p50": round(float(np.median(sample_times)), 1),
            "pacs_requests_per_next_sample": round(requests_for_samples / samples, 1),
            "next_sample_says": sample.get("reason", ""),
            "save_ms_p50": round(float(np.median(save_times)), 1),
            "total": status["total"],
            "completed": status["completed"],
            "rss_mb_start": round(rss_start),
            "rss_mb_end": round(_rss_mb(process)),
        }


def measure_folder(clicks: int, folder: Path) -> float:
    """Click on the same series in a folder; return the overhead of a click, ms."""
    studies = folder / "studies" / "series"
    studies.mkdir(parents=True)
    for k in range(SLICES):
        make_image(0, k).save_as(studies / f"{k:03}.dcm", write_like_original=False)
    settings = {"labels": LABELS, "adapters": str(folder / "adapters")}
    with running_server(studies.parent, folder / "folder.log", settings) as (address, _):
        client = Client(address, "baps", {"label": "ball"})
        client.click("series", 32, 32, SLICES // 2)
        time.sleep(5)
        return overhead(click_without_pauses(client, "series", clicks))


def _rss_mb(process: psutil.Process) -> float:
    return process.memory_info().rss / 1e6


def main(
    series: Annotated[int, typer.Option(help="Number of series in the PACS.")] = 100_000,
    clicks: Annotated[int, typer.Option(help="Number of clicks without pauses.")] = 200,
    pauses: Annotated[int, typer.Option(help="Number of clicks after a pause.")] = 4,
    samples: Annotated[int, typer.Option(help="Number of requests for the next sample.")] = 30,
    out: Annotated[Path, typer.Option()] = RESULTS / "archive.json",
) -> None:
    """Measure, print the figures and write them."""
    with tempfile.TemporaryDirectory() as parent:
        folders = [Path(parent) / name for name in ("small", "archive", "folder")]
        for folder in folders:
            folder.mkdir()
        small = measure(1000, clicks, 1, samples, folders[0])
        figures = measure(series, clicks, pauses, samples, folders[1])
        figures["folder_click_overhead_ms_p50"] = round(measure_folder(clicks, folders[2]), 1)
    figures["rss_growth_mb_1000_series"] = small["rss_mb_end"] - small["rss_mb_start"]
    figures["cpus"] = os.cpu_count()
    table = Table("measured", "value")
    for name, value in figures.items():
        table.add_row(name, str(value))
    console.print(table)
    out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
