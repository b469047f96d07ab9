"""The main job from end to end, on the sample data, through the client that 3D Slicer uses: ``baps demo``.

A server is started; volumes are clicked on; eight are labelled; the model is adapted to them; the volumes that were not
trained on are clicked on again, at the same places.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
import time
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
from baps.demo.phantoms import write_cases
from baps.demo.question import Question
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
SLICES, CLICKS = 8, 3
WINDOWS = [CT_WINDOW, (-125, 225), (-75, 175), (-40, 160), (-15, 135), (0, 120), (20, 120), (40, 120), (-110, 190)]
"""Windows that the simple baseline chooses from, by Dice on the labelled volumes."""

_LOG = "server.log"
_WRITTEN = ("samples", "studies", "adapters", "summary.json", "report.html", _LOG)

console = Console()


def image_of(samples: Path, case: str) -> Path:
    """Return the file of an image."""
    return samples / "images" / f"{case}.nii.gz"


def organ_of(samples: Path, case: str) -> tuple[Volume, NDArray[np.bool_]]:
    """Read an image, and where the organ is, (I, J, K)."""
    image = read_volume(image_of(samples, case))
    return image, read_labels(samples / "labels" / f"{case}.nii.gz", image) == VALUE


def questions_about(samples: Path, case: str, random: np.random.Generator, slices: int, clicks: int) -> list[Question]:
    """Draw clicks inside the organ, on evenly spaced slices that show it well."""
    _, organ = organ_of(samples, case)
    areas = organ.sum((0, 1))
    shown = np.flatnonzero(areas >= areas.max() / 5)
    found = []
    for index in shown[np.linspace(0, len(shown) - 1, slices).round().astype(int)]:
        plane = Plane(2, int(index))
        truth = plane.extract(organ)
        found += [Question(case, plane, draw_prompt(truth, "click", random), truth) for _ in range(clicks)]
    return found


def click(client: MONAILabelClient, model: str, question: Question) -> tuple[NDArray[np.bool_], dict[str, Any], float]:
    """Ask the server as 3D Slicer does; the mask on the slice, the reply's words, and the time in milliseconds."""
    x, y = question.prompt.positive[0]
    index = question.plane.index
    request = {
        "label": ORGAN,
        "foreground": [[int(x), int(y), index]],
        "background": [],
        "slice": index,
        "result_extension": ".nrrd",
        "result_dtype": "uint8",
    }
    begun = time.perf_counter()
    file, said = client.infer(model, question.case, request)
    elapsed = (time.perf_counter() - begun) * 1000
    voxels, _ = nrrd.read(file)
    Path(file).unlink()
    return question.plane.extract(voxels) > 0, said, elapsed


def best_window(segmenter: Segmenter, samples: Path, cases: list[str], seed: int) -> tuple[Window, int]:
    """Find the simple baseline: the window with the best Dice on the labelled volumes, and the images that took."""
    random = np.random.default_rng([seed, 2])
    asked = [q for case in cases for q in questions_about(samples, case, random, SLICES, 1)]
    scores = []
    for low, high in WINDOWS:
        window = Window(low, high)
        for q in asked:
            image = image_of(samples, q.case)
            q.masks["window"] = segmenter.segment(image, q.plane, q.prompt, ORGAN, False, window).mask
        scores.append(np.mean([q.dice("window") for q in asked]))
    low, high = WINDOWS[int(np.argmax(scores))]
    return Window(low, high), segmenter.black_box.images_queried


def save_labels(client: MONAILabelClient, samples: Path, cases: list[str]) -> int:
    """Correct the masks and submit them, as a radiologist does; here the corrected masks are the phantom's own."""
    for case in cases:
        image, organ = organ_of(samples, case)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "label.nii.gz"
            write_nifti(path, Volume(organ.astype(np.uint8), image.affine))
            client.save_label(case, str(path), "final", {"label_info": [{"name": ORGAN, "idx": 1}]})
    completed: int = client.info()["datastore"]["completed"]
    return completed


def train(client: MONAILabelClient, max_images: int, seed: int) -> dict[str, Any]:
    """Start a training and show its progress until it ends; its final stats."""
    client.train_start("baps", {"max_images": max_images, "seed": seed, "label": ORGAN})
    columns = (TextColumn("    adapting"), BarColumn(), TextColumn("{task.fields[said]}"), TimeElapsedColumn())
    stats: dict[str, Any] = {}
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None, said="starting")
        running = True
        while running:
            time.sleep(1)
            running = client.train_status(check_if_running=True)
            stats = client.info()["train_stats"]["baps"]
            said = f"{stats.get('black_box_images', 0)} images, best training Dice {stats.get('best_metric', 0):.3f}"
            bar.update(task, total=stats.get("total_epochs") or None, completed=stats.get("epoch", 0), said=said)
    stats = client.info()["train_stats"]["baps"]
    if client.train_status()["status"] != "DONE":
        raise RuntimeError(f"The training failed: {stats.get('error') or f'see {_LOG}'}")
    return stats


def run(out: Path, seed: int, max_images: int, remote: str) -> None:
    """Run the demo.

    Args:
        out: folder that it writes to; an older demo in it is replaced.
        seed: of the clicks, the choice of volumes, and the training.
        max_images: black-box images that the adaptation may use.
        remote: address of a model on another machine, in place of the bundled one; or "".

    Raises:
        InputError: if the folder holds something else.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped then, too
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
    asked = [q for case in unseen for q in questions_about(samples, case, random, SLICES, CLICKS)]

    console.print("[bold]1. Start the server[/] on phantoms (see baps/demo/phantoms.py)")
    settings = {"labels": f"{ORGAN}=1", "adapters": str(out / "adapters")}
    settings |= {"black_box": "remote", "remote": remote} if remote else {}
    first: list[float] = []
    repeat: list[float] = []
    with running_server(studies, out / _LOG, settings) as (address, _):
        client = MONAILabelClient(address, tmpdir=tempfile.mkdtemp())
        info = client.info()
        console.print(
            f"    {info['name']} at {address}: models {', '.join(info['models'])}; {info['datastore']['total']} volumes"
        )
        sample = client.next_sample("random", {})
        console.print(f"    next sample: {sample['id']}")

        console.print(f"[bold]2. Click[/] on {len(unseen)} volumes without labels: {len(asked)} clicks, unadapted")
        for q in asked:
            q.masks["zero_shot"], said, elapsed = click(client, "zero_shot", q)
            (repeat if said["encoding_cached"] else first).append(elapsed)

        console.print(f"[bold]3. Save labels[/] of {LABELLED} other volumes")
        saved = save_labels(client, samples, labelled)
        console.print(f"    {saved} volumes are labelled now")

        console.print(f"[bold]4. Train[/] with {max_images} black-box images at the most")
        stats = train(client, max_images, seed)
        result = stats["adapters"][ORGAN]
        console.print(f"    {result['status']}: {result['reason']}")

        console.print("[bold]5. Click again[/] at the same places")
        for n, q in enumerate(asked):
            q.masks["adapted"], said, elapsed = click(client, "baps", q)
            (repeat if said["encoding_cached"] else first).append(elapsed)
            if n == 0:
                console.print(f"    served by adapter {said['adapter']}")

    console.print("[bold]6. Compare[/] with the best simple window, chosen on the labelled volumes")
    black_box = load_black_box("remote", remote=RemoteSettings(remote)) if remote else load_black_box()
    segmenter = Segmenter(black_box, AdapterStore(out / "no-adapters"))
    window, window_images = best_window(segmenter, samples, labelled, seed)
    for q in asked:
        image = image_of(samples, q.case)
        q.masks["window"] = segmenter.segment(image, q.plane, q.prompt, ORGAN, False, window).mask

    means = {
        arm: {case: float(np.mean([q.dice(arm) for q in asked if q.case == case])) for case in unseen}
        for arm in ("zero_shot", "window", "adapted")
    }
    summary = {
        "zero_shot_dice": float(np.mean(list(means["zero_shot"].values()))),
        "best_window_dice": float(np.mean(list(means["window"].values()))),
        "adapted_dice": float(np.mean(list(means["adapted"].values()))),
        "black_box_images": result["black_box_images"],
        "best_window_images": window_images,
        "first_click_ms": round(float(np.median(first)), 1),
        # A remote model has no encodings: there a repeated click costs as much as the first.
        "repeat_click_ms": round(float(np.median(repeat or first)), 1),
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
    write_report(out / "report.html", studies, ORGAN, asked, means, summary, result)
    _show(means, summary, out)


def _clear(out: Path) -> None:
    """Remove what an older demo left in a folder, and nothing else."""
    left = [path for name in _WRITTEN if (path := out / name).exists()]
    if left and not (out / _LOG).is_file():
        raise InputError(f"{left[0]} is not that of a demo. Give another folder: --out FOLDER.")
    for path in left:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    out.mkdir(parents=True, exist_ok=True)
    (out / _LOG).touch()  # By it a later demo knows its folder.


def _show(means: dict[str, dict[str, float]], summary: dict[str, Any], out: Path) -> None:
    table = Table(title=f"Dice of the {ORGAN} on volumes that were not trained on")
    for name in ("volume", "zero-shot", "best window", "adapted", "gain"):
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
