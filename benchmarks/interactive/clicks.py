"""Compare the time of a click with MONAI Label's own SAM2, with the same random weights.

``make bench-clicks`` makes a volume of 512 x 512 x 300 voxels, int16, starts both servers one after the other on this
machine, and clicks with the same client over HTTP: the first click on a slice, a repeated click, a click on the next
slice after viewing this one, and eight users at once. Our server reports the time of the model in its replies, so that
the rest is the overhead. Random weights take the time of real ones. The script prints a table and writes
``benchmarks/results/clicks.json``. Run it with nothing else on the machine.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import nibabel
import numpy as np
import psutil
import requests
import sam2
import torch
import typer
from rich.console import Console
from rich.table import Table

from baps.adapters.adapter import Adapter
from baps.adapters.visual_prompt import build_visual_prompt
from baps.blackbox import load_black_box
from baps.blackbox.sam2 import build_sam2_model
from baps.demo.server import free_port, running, running_server
from baps.registry.store import AdapterStore
from baps.site.server_command import serving_command
from benchmarks.paths import RESULTS

HERE = Path(__file__).resolve().parent
SHAPE = (512, 512, 300)
_USERS = 8
_VIEWING_SECONDS = 8.0
"""Time that the user views a slice before the next one."""

console = Console(soft_wrap=True, highlight=False)


@dataclass
class ReplyTimes:
    """Times of replies, in milliseconds.

    Attributes:
        total: from the request's first byte to the reply's last.
        server: between the parsed request and the reply's first byte, if the server reports it.
        model: in the model, if the server reports it.
    """

    total: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)
    model: list[float] = field(default_factory=list)

    def add(self, other: ReplyTimes) -> None:
        """Add the replies of another one."""
        self.total += other.total
        self.server += other.server
        self.model += other.model

    def percentile(self, share: float) -> float:
        """Compute a percentile of the total times."""
        return float(np.percentile(self.total, share))

    @property
    def overhead(self) -> float:
        """Median of the server's time without the model."""
        return float(np.median(np.subtract(self.server, self.model)))

    @property
    def transfer(self) -> float:
        """Median of the time outside the server."""
        return float(np.median(np.subtract(self.total, self.server)))


@dataclass(frozen=True)
class Client:
    """Click on one model of a server.

    Attributes:
        address: address of the server.
        model: name of the model.
        options: further fields of every request.
    """

    address: str
    model: str
    options: dict[str, Any]

    def click(self, image: str, i: int, j: int, k: int, compress: bool = True) -> ReplyTimes:
        """Send one foreground click as 3D Slicer does, and read the whole reply."""
        params = {
            "foreground": [[i, j, k]], "background": [], "slice": k, "result_extension": ".nrrd",
            "result_dtype": "uint8", "result_compress": compress, **self.options,
        }  # fmt: skip
        start = time.perf_counter()
        address = f"{self.address}/infer/{self.model}?image={image}&output=image"
        reply = requests.post(address, data={"params": json.dumps(params)}, timeout=600)
        total = 1000 * (time.perf_counter() - start)
        reply.raise_for_status()
        timing = dict(part.strip().split(";dur=") for part in reply.headers.get("Server-Timing", "").split(",") if part)
        return ReplyTimes(
            [total], [float(timing["total"])] if timing else [], [float(timing["model"])] if timing else []
        )


def measure(client: Client, slices: int, repeats: int) -> dict[str, ReplyTimes]:
    """Measure all kinds of click on a volume that is opened first."""
    times = {
        name: ReplyTimes() for name in ("opening", "first", "repeated", "repeated, raw", "next slice", "eight users")
    }
    times["opening"].add(client.click("volume_0", 250, 250, 5))
    for number in range(slices):
        k = 20 + 12 * number
        times["first"].add(client.click("volume_0", 240, 250, k))
        for repeat in range(repeats):
            times["repeated"].add(client.click("volume_0", 200 + 7 * repeat, 260, k))
        times["repeated, raw"].add(client.click("volume_0", 230, 230, k, compress=False))
    k = 200
    client.click("volume_0", 240, 250, k)
    for _ in range(slices):
        time.sleep(_VIEWING_SECONDS)
        k += 1
        times["next slice"].add(client.click("volume_0", 240, 250, k))
    time.sleep(_VIEWING_SECONDS)

    def user(number: int) -> list[ReplyTimes]:
        return [client.click("volume_0", 150 + 20 * n, 250, 90 + 10 * number) for n in range(3)]

    with ThreadPoolExecutor(_USERS) as pool:
        for clicks in pool.map(user, range(_USERS)):
            for times_of_click in clicks:
                times["eight users"].add(times_of_click)
    return times


def write_volume(file: Path) -> None:
    """Write noise with a bright ball, with values of CT."""
    random = np.random.default_rng(0)
    slab = random.normal(0, 40, SHAPE[:2])
    i, j = np.mgrid[: SHAPE[0], : SHAPE[1]]
    voxels = np.empty(SHAPE, np.int16)
    for k in range(SHAPE[2]):
        ball = (i - 250) ** 2 + (j - 250) ** 2 + (k - 150) ** 2 < 140**2
        voxels[:, :, k] = np.roll(slab, 7 * k, axis=0) + 90 * ball
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([0.8, 0.8, 1.5, 1])), file)


def publish(weights: Path, folder: Path) -> None:
    """Publish adapters conditioned on the label and on the click, for labels of these names, whose weights have an
    effect."""
    black_box = load_black_box("sam2", weights, device="cpu")
    capabilities = black_box.capabilities
    store = AdapterStore(folder)
    for label, kind in (("label", "basis"), ("click", "concat")):
        visual_prompt = build_visual_prompt(kind, condition=label)
        with torch.no_grad():
            for value in visual_prompt.parameters():
                value.add_(0.01)
        adapter = Adapter(visual_prompt)
        trained_for = {"weights_sha256": capabilities.weights_sha256, "preprocessing": capabilities.preprocessing}
        record = {"adapter": adapter.to_dict(), "black_box": trained_for}
        store.publish(label, store.add(label, adapter, record))


@contextmanager
def stock_server(studies: Path, models: Path, weights: Path, log: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run MONAI Label's own start command with its own SAM2."""
    config = "sam2.1_hiera_t.yaml"
    shutil.copy(Path(sam2.__file__).parent / "configs" / "sam2.1" / config, models / config)
    port, settings = free_port(), {"model_dir": str(models)}
    command, environment = serving_command(
        str(studies), "127.0.0.1", port, settings, stock=True, app=HERE / "stock_sam2"
    )
    address = f"http://127.0.0.1:{port}"
    sam2_variables = {
        "MONAI_SAM_MODEL_PT": f"http://127.0.0.1/{weights.name}",
        "MONAI_SAM_MODEL_CFG": f"http://127.0.0.1/{config}",
    }
    with running(command, {**environment, **sam2_variables}, f"{address}/info/", log) as process:
        yield address, process


def peak_mb(process: psutil.Process) -> float:
    """Return the peak memory of a process, in MB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main(
    slices: Annotated[int, typer.Option(help="Number of slices that are clicked on.")] = 5,
    repeats: Annotated[int, typer.Option(help="Number of repeated clicks on each slice.")] = 4,
    volumes: Annotated[int, typer.Option(help="Number of volumes that are opened to measure the peak memory.")] = 8,
    out: Annotated[Path, typer.Option()] = RESULTS / "clicks.json",
) -> None:
    """Measure, print the figures and write them."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        studies, models = folder / "studies", folder / "models"
        studies.mkdir()
        models.mkdir()
        write_volume(studies / "volume_0.nii.gz")
        for number in range(1, volumes):
            (studies / f"volume_{number}.nii.gz").symlink_to("volume_0.nii.gz")
        weights = models / "random_tiny.pt"
        torch.manual_seed(0)
        torch.save({"model": build_sam2_model("t").state_dict()}, weights)
        publish(weights, folder / "adapters")
        settings = {
            "labels": "label,click", "black_box": "sam2", "weights": str(weights), "device": "cpu",
            "adapters": str(folder / "adapters"),
        }  # fmt: skip
        console.print("MONAI Label's own SAM2 ...")
        with stock_server(studies, models, weights, folder / "stock.log") as (address, process):
            stock = measure(Client(address, "sam2", {"device": "cpu"}), slices, repeats)
            stock_peak = peak_mb(process)
        console.print("This server ...")
        ours: dict[str, dict[str, ReplyTimes]] = {}
        with running_server(studies, folder / "ours.log", settings) as (address, process):
            ours["unadapted model"] = measure(Client(address, "zero_shot", {}), slices, repeats)
            our_peak = peak_mb(process)
            for label in ("label", "click"):
                ours[f"adapter by {label}"] = measure(Client(address, "baps", {"label": label}), slices, repeats)
        peak_by_volumes = _peak_memory_by_volumes(studies, folder, {**settings, "cache_mb": "512"}, volumes)
    figures = _figures(stock, ours)
    figures |= {"peak_rss_mb": our_peak, "stock_peak_rss_mb": stock_peak, "peak_rss_mb_cache_512": peak_by_volumes}
    _print(stock, ours, figures)
    out.write_text(json.dumps(figures, indent=1))


def _peak_memory_by_volumes(studies: Path, folder: Path, settings: dict[str, str], volumes: int) -> dict[int, float]:
    """Measure the peak memory by the number of volumes, with clicks on three slices of each."""
    times = {}
    with running_server(studies, folder / "bounded.log", settings) as (address, process):
        client = Client(address, "zero_shot", {})
        for number in range(volumes):
            for k in (50, 150, 250):
                client.click(f"volume_{number}", 250, 250, k)
            times[number + 1] = round(peak_mb(process), 1)
    return times


def _figures(stock: dict[str, ReplyTimes], ours: dict[str, dict[str, ReplyTimes]]) -> dict[str, Any]:
    unadapted = ours["unadapted model"]

    def ratio(kind: str) -> float:
        return stock[kind].percentile(50) / unadapted[kind].percentile(50)

    return {
        "volume": SHAPE,
        "cpus": os.cpu_count(),
        "repeat_click_ratio": ratio("repeated"),
        "first_click_ratio": ratio("first"),
        "next_slice_ratio": ratio("next slice"),
        "eight_users_ratio": ratio("eight users"),
        "overhead_ms_p50": unadapted["repeated"].overhead,
        "first_click_overhead_ms_p50": unadapted["first"].overhead,
        "overhead_ms_p50_by_adapter": {name: times["repeated"].overhead for name, times in ours.items()},
        "transfer_ms": {"compressed": unadapted["repeated"].transfer, "raw": unadapted["repeated, raw"].transfer},
        "stock_ms": {kind: _row(times) for kind, times in stock.items()},
        "ours_ms": {name: {kind: _row(times) for kind, times in times.items()} for name, times in ours.items()},
    }


def _row(times: ReplyTimes) -> dict[str, float]:
    timing = {"p50": times.percentile(50), "p95": times.percentile(95), "count": len(times.total)}
    if times.model:
        timing |= {"model_p50": float(np.median(times.model)), "overhead_p50": times.overhead}
    return {name: round(value, 1) for name, value in timing.items()}


def _print(stock: dict[str, ReplyTimes], ours: dict[str, dict[str, ReplyTimes]], figures: dict[str, Any]) -> None:
    table = Table("click", "server", "p50, ms", "p95, ms", "stock / ours", "model, ms", "overhead, ms")
    format_ms: Callable[[float], str] = "{:.0f}".format
    for kind, stock_times in stock.items():
        table.add_row(
            kind,
            "MONAI Label's SAM2",
            format_ms(stock_times.percentile(50)),
            format_ms(stock_times.percentile(95)),
            "1",
            "",
            "",
        )
        for name, times in ours.items():
            ours_row = times[kind]
            table.add_row(
                "", name, format_ms(ours_row.percentile(50)), format_ms(ours_row.percentile(95)),
                f"{stock_times.percentile(50) / ours_row.percentile(50):.1f}",
                format_ms(float(np.median(ours_row.model))), f"{ours_row.overhead:.1f}",
            )  # fmt: skip
    console.print(table)
    transfer, peak_by_volumes = figures["transfer_ms"], figures["peak_rss_mb_cache_512"]
    console.print(f"Transfer of a reply: {transfer['compressed']:.1f} ms compressed, {transfer['raw']:.0f} ms raw.")
    stock_mb, our_mb = figures["stock_peak_rss_mb"], figures["peak_rss_mb"]
    console.print(f"Peak memory: {stock_mb:.0f} MB for MONAI Label's SAM2, {our_mb:.0f} MB for this server.")
    timing = ", ".join(f"{megabytes:.0f} after {count}" for count, megabytes in peak_by_volumes.items())
    console.print(f"Peak memory with cache_mb=512, MB by volumes opened: {timing}.")


if __name__ == "__main__":
    typer.run(main)
