"""Run the demo, ``baps demo``: the whole workflow on phantoms, through the client that 3D Slicer uses.

It starts a server, clicks on volumes, saves labels of eight others, adapts the model to these, and repeats the clicks.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
from monailabel.client import MONAILabelClient
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, track
from rich.table import Table

from baps.blackbox import RemoteSettings, load_black_box
from baps.demo.click import DemoClick
from baps.demo.phantoms import write_cases
from baps.demo.report import write_report
from baps.demo.server import running_server
from baps.errors import InputError
from baps.imaging.canvas import Plane
from baps.imaging.volume import Volume
from baps.imaging.windowing import CT_WINDOW, Window
from baps.inference.segmenter import Segmenter
from baps.io import read_labels, read_volume, write_nifti
from baps.prompts.simulated import draw_prompt
from baps.registry.store import AdapterStore

ORGAN, VALUE = "spleen", 2
CASES, LABELLED = 11, 8
SLICES, CLICKS_PER_SLICE = 8, 3
WINDOWS = [CT_WINDOW, (-125, 225), (-75, 175), (-40, 160), (-15, 135), (0, 120), (20, 120), (40, 120), (-110, 190)]
"""Windows of the simple baseline, which uses the one with the best Dice on the labelled volumes."""

_LOG = "server.log"
_WRITTEN = ("samples", "studies", "adapters", "summary.json", "report.html", _LOG)

console = Console()


def image_file(samples: Path, case: str) -> Path:
    """Return the file of an image."""
    return samples / "images" / f"{case}.nii.gz"


def read_organ(samples: Path, case: str) -> tuple[Volume, NDArray[np.bool_]]:
    """Read an image, and the mask of the organ, (I, J, K)."""
    image = read_volume(image_file(samples, case))
    return image, read_labels(samples / "labels" / f"{case}.nii.gz", image) == VALUE


def draw_clicks(samples: Path, case: str, random: np.random.Generator, slices: int, per_slice: int) -> list[DemoClick]:
    """Draw clicks inside the organ, on evenly spaced slices on which it is large.

    Args:
        samples: Folder of images and labels.
        case: Name of the volume.
        random: Random generator of the places.
        slices: Number of slices.
        per_slice: Number of clicks per slice.

    Returns:
        The clicks.
    """
    _, organ = read_organ(samples, case)
    areas = organ.sum((0, 1))
    candidates = np.flatnonzero(areas >= areas.max() / 5)
    clicks = []
    for index in candidates[np.linspace(0, len(candidates) - 1, slices).round().astype(int)]:
        plane = Plane(2, int(index))
        target = plane.extract(organ)
        clicks += [DemoClick(case, plane, draw_prompt(target, "click", random), target) for _ in range(per_slice)]
    return clicks


def send_click(
    client: MONAILabelClient, model: str, click: DemoClick
) -> tuple[NDArray[np.bool_], dict[str, Any], float]:
    """Send a click to the server as 3D Slicer does.

    Args:
        client: The client.
        model: Name of the infer task.
        click: The click.

    Returns:
        The mask on the slice, (H, W), the JSON of the reply, and the time in milliseconds.
    """
    x, y = click.prompt.positive[0]
    index = click.plane.index
    request = {
        "label": ORGAN,
        "foreground": [[int(x), int(y), index]],
        "background": [],
        "slice": index,
        "result_extension": ".nrrd",
        "result_dtype": "uint8",
    }
    begun = time.perf_counter()
    file, reply = client.infer(model, click.case, request)
    elapsed = (time.perf_counter() - begun) * 1000
    voxels, _ = nrrd.read(file)
    Path(file).unlink()
    return click.plane.extract(voxels) > 0, reply, elapsed


def best_window(segmenter: Segmenter, samples: Path, cases: list[str], seed: int) -> tuple[Window, int]:
    """Find the window with the best Dice on the labelled volumes.

    Args:
        segmenter: The segmenter.
        samples: Folder of images and labels.
        cases: Names of the labelled volumes.
        seed: Random seed of the clicks.

    Returns:
        The window, and the number of black-box images that were used.
    """
    random = np.random.default_rng([seed, 2])
    clicks = [click for case in cases for click in draw_clicks(samples, case, random, SLICES, 1)]
    scores = []
    for low, high in WINDOWS:
        window = Window(low, high)
        for click in clicks:
            image = image_file(samples, click.case)
            click.masks["window"] = segmenter.segment(image, click.plane, click.prompt, window=window).mask
        scores.append(np.mean([click.dice("window") for click in clicks]))
    low, high = WINDOWS[int(np.argmax(scores))]
    return Window(low, high), segmenter.black_box.images_queried


def save_labels(client: MONAILabelClient, samples: Path, cases: list[str]) -> int:
    """Submit labels, as a radiologist does after correcting masks. Here they are the true labels of the phantoms.

    Args:
        client: The client.
        samples: Folder of images and labels.
        cases: Names of the volumes.

    Returns:
        Number of volumes that are labelled now.
    """
    for case in cases:
        image, organ = read_organ(samples, case)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "label.nii.gz"
            write_nifti(path, Volume(organ.astype(np.uint8), image.affine))
            client.save_label(case, str(path), "final", {"label_info": [{"name": ORGAN, "idx": 1}]})
    completed: int = client.info()["datastore"]["completed"]
    return completed


def train(client: MONAILabelClient, max_images: int, seed: int) -> dict[str, Any]:
    """Start a training and show its progress until it ends.

    Args:
        client: The client.
        max_images: Maximum number of black-box images.
        seed: Random seed.

    Returns:
        The final statistics of the training.

    Raises:
        RuntimeError: If the training fails.
    """
    client.train_start("baps", {"max_images": max_images, "seed": seed, "label": ORGAN})
    columns = (TextColumn("    adapting"), BarColumn(), TextColumn("{task.fields[status]}"), TimeElapsedColumn())
    stats: dict[str, Any] = {}
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None, status="starting")
        running = True
        while running:
            time.sleep(1)
            running = client.train_status(check_if_running=True)
            stats = client.info()["train_stats"]["baps"]
            status = f"{stats.get('black_box_images', 0)} images, best training Dice {stats.get('best_metric', 0):.3f}"
            bar.update(task, total=stats.get("total_epochs") or None, completed=stats.get("epoch", 0), status=status)
    stats = client.info()["train_stats"]["baps"]
    if client.train_status()["status"] != "DONE":
        raise RuntimeError(f"The training failed: {stats.get('error') or f'see {_LOG}'}")
    return stats


def run(out: Path, seed: int, max_images: int, remote: str, keep: bool = False) -> None:
    """Run the demo.

    Args:
        out: Folder for the results. An earlier demo in it is replaced.
        seed: Random seed of the clicks, the choice of volumes, and the training.
        max_images: Maximum number of black-box images of the adaptation.
        remote: Address of a model on another machine, or "" for the bundled one.
        keep: Leave the server running at the end, until the user interrupts it.

    Raises:
        InputError: If the folder contains other files of these names.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that the server is stopped too.
    begun = time.monotonic()
    _clear(out)
    samples, studies = out / "samples", out / "studies"
    for _ in track(write_cases(samples, "ct", CASES), "Making volumes", CASES, console=console, transient=True):
        pass
    shutil.copytree(samples / "images", studies)
    random = np.random.default_rng(seed)
    cases = sorted(p.name.removesuffix(".nii.gz") for p in studies.glob("*.nii.gz"))
    order = [cases[n] for n in random.permutation(len(cases))]
    labelled, unseen = sorted(order[:LABELLED]), sorted(order[LABELLED:])
    clicks = [click for case in unseen for click in draw_clicks(samples, case, random, SLICES, CLICKS_PER_SLICE)]

    console.print("[bold]1. Start the server[/] on phantoms (see baps/demo/phantoms.py)")
    settings = {"labels": f"{ORGAN}=1", "adapters": str(out / "adapters")}
    settings |= {"black_box": "remote", "remote": remote} if remote else {}
    first_ms: list[float] = []
    repeat_ms: list[float] = []
    with running_server(studies, out / _LOG, settings) as (address, _):
        client = MONAILabelClient(address, tmpdir=tempfile.mkdtemp())
        info = client.info()
        console.print(
            f"    {info['name']} at {address}: models {', '.join(info['models'])}; {info['datastore']['total']} volumes"
        )
        sample = client.next_sample("random", {})
        console.print(f"    next sample: {sample['id']}")

        console.print(f"[bold]2. Click[/] on {len(unseen)} volumes without labels: {len(clicks)} clicks, unadapted")
        for click in clicks:
            click.masks["zero_shot"], reply, elapsed = send_click(client, "zero_shot", click)
            (repeat_ms if reply["encoding_cached"] else first_ms).append(elapsed)

        console.print(f"[bold]3. Save labels[/] of {LABELLED} other volumes")
        saved = save_labels(client, samples, labelled)
        console.print(f"    {saved} volumes are labelled now")

        console.print(f"[bold]4. Train[/] with at most {max_images} black-box images")
        stats = train(client, max_images, seed)
        result = stats["adapters"][ORGAN]
        console.print(f"    {result['reason']}")

        console.print("[bold]5. Click again[/] at the same places")
        for n, click in enumerate(clicks):
            click.masks["adapted"], reply, elapsed = send_click(client, "baps", click)
            (repeat_ms if reply["encoding_cached"] else first_ms).append(elapsed)
            if n == 0:
                console.print(f"    served by adapter {reply['adapter']}")

        console.print("[bold]6. Compare[/] with the best simple window, chosen on the labelled volumes")
        black_box = load_black_box("remote", remote=RemoteSettings(remote)) if remote else load_black_box()
        segmenter = Segmenter(black_box, AdapterStore(out / "no-adapters"))
        window, window_images = best_window(segmenter, samples, labelled, seed)
        for click in clicks:
            image = image_file(samples, click.case)
            click.masks["window"] = segmenter.segment(image, click.plane, click.prompt, window=window).mask

        means = {
            arm: {case: float(np.mean([click.dice(arm) for click in clicks if click.case == case])) for case in unseen}
            for arm in ("zero_shot", "window", "adapted")
        }
        summary = {
            "zero_shot_dice": float(np.mean(list(means["zero_shot"].values()))),
            "best_window_dice": float(np.mean(list(means["window"].values()))),
            "adapted_dice": float(np.mean(list(means["adapted"].values()))),
            "black_box_images": result["black_box_images"],
            "best_window_images": window_images,
            "first_click_ms": round(float(np.median(first_ms)), 1),
            # A remote model has no encodings, so a repeated click takes as long as the first.
            "repeat_click_ms": round(float(np.median(repeat_ms or first_ms)), 1),
            "labels_saved": saved,
            "adapter_version": result["version"],
            "adapter_status": result["status"],
            "seed": seed,
            "trained_on": labelled,
            "measured_on": unseen,
            "best_window": [window.low, window.high],
            "seconds": round(time.monotonic() - begun, 1),
        }
        (out / "summary.json").write_text(json.dumps(summary, indent=1))
        write_report(out / "report.html", studies, ORGAN, clicks, means, summary, result)
        _print_results(means, summary, out)
        if keep:
            console.print(
                f"The server is still running. Open {address} in a browser to see what it has learned. "
                "Press Ctrl+C to stop it."
            )
            _wait_for_interrupt()


def _wait_for_interrupt() -> None:
    with suppress(KeyboardInterrupt):
        signal.pause()


def _clear(out: Path) -> None:
    """Remove the files of an earlier demo from a folder, and nothing else."""
    existing = [path for name in _WRITTEN if (path := out / name).exists()]
    if existing and not (out / _LOG).is_file():
        raise InputError(f"{existing[0]} is not from a demo. Give another folder: --out FOLDER.")
    for path in existing:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    out.mkdir(parents=True, exist_ok=True)
    (out / _LOG).touch()  # A later demo recognises its folder by it.


def _print_results(means: dict[str, dict[str, float]], summary: dict[str, Any], out: Path) -> None:
    table = Table(title=f"Dice of the {ORGAN} on volumes that were not trained on")
    for name in ("volume", "unadapted", "best window", "adapted", "gain"):
        table.add_column(name, justify="left" if name == "volume" else "right")
    for case, before in means["zero_shot"].items():
        after = means["adapted"][case]
        table.add_row(case, f"{before:.3f}", f"{means['window'][case]:.3f}", f"{after:.3f}", f"{after - before:+.3f}")
    before, after = summary["zero_shot_dice"], summary["adapted_dice"]
    table.add_section()
    table.add_row(
        "mean", f"{before:.3f}", f"{summary['best_window_dice']:.3f}", f"{after:.3f}", f"{after - before:+.3f}"
    )
    console.print(table)
    console.print(
        f"Black-box images: {summary['black_box_images']} to adapt, {summary['best_window_images']} to choose the "
        f"window. First click {summary['first_click_ms']:.0f} ms, repeated click {summary['repeat_click_ms']:.0f} ms "
        f"(median, client to client). {summary['seconds']:.0f} s in all."
    )
    console.print(f"Pictures: {out / 'report.html'}   Figures: {out / 'summary.json'}")
