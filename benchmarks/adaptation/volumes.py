"""Adapt the bundled 3D model to organs, and compare it with the model of slices carried through the volume.

``make bench-volumes`` runs every cell (domain, arm, seed) that has no result yet, in ``benchmarks/runs/volumes`` or in
``benchmarks/results/volumes.json``, prints a table and writes that file and the table in ``docs/results/volumes.md``;
``--restart`` runs all again. Each arm is trained
on the training and validation patients and measured on the test patients by volume: three 3D clicks each, then up to
four corrections. ``make bench-volumes QUICK=1`` takes at most ten minutes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any
from zlib import crc32

import numpy as np
import torch
import typer
from rich.console import Console

from baps.adapters.volumes.adapter import ShownVolume, VolumeAdapter
from baps.blackbox import load_black_box
from baps.blackbox.volumes.bundled import BundledVolumeBlackBox, load_bundled_volume_model
from baps.evaluation.cases import Case, CaseReader
from baps.evaluation.evaluate_volumes import CLICK_SETS, evaluate_volumes
from baps.evaluation.labelled_volumes import VolumesByPatient, load_volumes
from baps.imaging.canvas import SLICE_AXIS
from baps.imaging.metrics import dice
from baps.imaging.windowing import Window
from baps.inference.requests.click import OrganClicks
from baps.inference.segmenter import Segmenter
from baps.inference.whole_organ import segment_organ
from baps.prompts import Prompt
from baps.prompts.simulated_volumes import draw_volume_prompts
from baps.prompts.volume_prompts import VolumePoint
from baps.registry.store import AdapterStore
from baps.training.volumes.adapt import adapt_volumes
from baps.training.volumes.settings import VolumeSettings
from baps.utils.atomic_write import atomic_write
from benchmarks.adaptation.volume_fine_tuning import fine_tune
from benchmarks.earlier_runs import restore_runs
from benchmarks.interactive.whole_organs import train as train_slices
from benchmarks.page import write_between_marks
from benchmarks.paths import PAGES, RESULTS, RUNS
from benchmarks.real_data import DOMAINS, ROOT, Domain, cases

CORE = ("BTCV spleen, CT", "BTCV liver, CT", "BTCV left kidney, CT", "CHAOS liver, MR", "hippocampus, MR")
CLICKS = 5
_MAX_TEST = 12
"""Maximum number of test volumes of a domain."""
_MAX_TRAINING = 16
"""Maximum number of training volumes of a domain."""

console = Console(soft_wrap=True, highlight=False)


@dataclass
class Trial:
    """What an arm works with.

    Attributes:
        black_box: the model.
        volumes: labelled volumes to train on.
        test: the test patients.
        domain: the domain.
        settings: the settings of the adaptation, with the seed.
        notes: what the arm reports.
    """

    black_box: BundledVolumeBlackBox
    volumes: VolumesByPatient
    test: Sequence[Case]
    domain: Domain
    settings: VolumeSettings
    notes: dict[str, Any] = field(default_factory=dict)

    def measure(
        self, adapter: VolumeAdapter | None, black_box: BundledVolumeBlackBox | None = None, prompt: str = "click"
    ) -> dict[str, Any]:
        """Measure an adapter on the test patients."""
        model, seed = black_box or self.black_box, self.settings.seed
        result = evaluate_volumes(model, self.test, adapter, prompt, seed, clicks=CLICKS)
        patients = [result.by_patient(n + 1) for n in range(CLICKS)]
        scores = result.to_dict()
        return {
            "by_patient": patients[0],
            "by_clicks": scores["by_clicks"],
            "hd95_by_clicks": scores["hd95_by_clicks"],
        }

    def adapt(self, **changes: Any) -> dict[str, Any]:
        """Adapt with changed settings, and measure what the procedure made, whatever the gate says of it."""
        result = adapt_volumes(self.black_box, self.volumes, replace(self.settings, **changes))
        self.notes |= {"parts": result.record["parts"], "scores": result.record["scores"]["parts"]}
        self.notes |= {"predictions": result.record["black_box_images"], "width": result.adapter.width}
        self.notes["sentence"] = result.sentence()
        return self.measure(result.adapter)


def unadapted(trial: Trial) -> dict[str, Any]:
    """Ask the model about the whole volume, as nnInteractive's viewers do."""
    return trial.measure(None)


def unadapted_box(trial: Trial) -> dict[str, Any]:
    """Ask the model with a 3D box instead of a click."""
    return trial.measure(None, prompt="box")


def best_window(trial: Trial) -> dict[str, Any]:
    """Choose the window in which the whole volume is shown, among five, on the labelled volumes."""
    scores: dict[str, list[float]] = {name: [] for name in _WINDOWS}
    for volumes in trial.volumes.values():
        for one in volumes:
            random = np.random.default_rng([trial.settings.seed, len(scores["own"])])
            (prompt,) = draw_volume_prompts(one.target, one.image.spacing, "click", 1, random)
            for name, values in scores.items():
                shown = _windowed(one.image, name)
                answer = trial.black_box.predict(shown.voxels, shown.spacing, [prompt])
                values.append(dice(answer > 0.5, one.target))
    best = max(scores, key=lambda name: float(np.mean(scores[name])))
    trial.notes["window"] = best

    class Windowed(VolumeAdapter):
        def predict(self, black_box, volume, prompts, mask=None):  # type: ignore[no-untyped-def]
            return super().predict(black_box, _windowed(volume, best), prompts, mask)

    return trial.measure(Windowed())


_WINDOWS = {
    "own": (0.0, 1.0),
    "lower half": (0.0, 0.5),
    "upper half": (0.5, 1.0),
    "middle": (0.25, 0.75),
    "wide": (-1.0, 2.0),
}
"""Windows relative to the volume's own."""


def _windowed(volume: ShownVolume, name: str) -> ShownVolume:
    low, high = volume.window.low, volume.window.high
    first, last = _WINDOWS[name]
    window = Window(low + first * (high - low), low + last * (high - low))
    return ShownVolume(window.apply(volume.voxels), volume.spacing, volume.window)


def zoom(trial: Trial) -> dict[str, Any]:
    """Choose the cube alone."""
    return trial.adapt(visual_prompt="none", head="none")


def visual_prompt(trial: Trial) -> dict[str, Any]:
    """Train a tone curve alone, in a cube of typical size."""
    return trial.adapt(zoom="typical", head="none")


def head(trial: Trial) -> dict[str, Any]:
    """Train a head alone, on answers about the whole volume."""
    return trial.adapt(zoom="none", visual_prompt="none")


def default(trial: Trial) -> dict[str, Any]:
    """Adapt with the default settings."""
    return trial.adapt()


def white_box(trial: Trial) -> dict[str, Any]:
    """Fine-tune the weights of the model, which a black box does not allow."""
    every = [one for volumes in trial.volumes.values() for one in volumes]
    tuned, width = fine_tune(trial.black_box, every, trial.settings.seed)
    return trial.measure(VolumeAdapter(width), tuned)


def slices_unadapted(trial: Trial) -> dict[str, Any]:
    """Carry the unadapted model of slices from the clicked slice through the volume."""
    return _measure_slices(trial, adapted=False)


def slices_adapted(trial: Trial) -> dict[str, Any]:
    """Carry the adapted model of slices from the clicked slice through the volume."""
    return _measure_slices(trial, adapted=True)


def _measure_slices(trial: Trial, adapted: bool) -> dict[str, Any]:
    black_box, store = load_black_box(), AdapterStore(RUNS / "whole_organs")
    if adapted:
        train_slices(trial.domain, black_box, store)
    by_patient: dict[str, list[float]] = {}
    before = black_box.images_queried
    for case in trial.test:
        volume, target, _ = CaseReader().read(case)
        random = np.random.default_rng([trial.settings.seed, crc32(case.image.name.encode()), case.value])
        for click in draw_volume_prompts(target, volume.spacing, "click", CLICK_SETS, random):
            i, j, k = click.voxel if isinstance(click, VolumePoint) else (0, 0, 0)
            prompts = {k: Prompt(((float(i), float(j)),))}
            clicks = OrganClicks(trial.domain.name, prompts, {}, 0, volume.shape[SLICE_AXIS] - 1)
            segmenter = Segmenter(black_box, store)
            adapter = segmenter.load_adapter(trial.domain.name) if adapted else None
            mask = segment_organ(segmenter, case.image, clicks, adapter).mask > 0
            by_patient.setdefault(case.patient, []).append(dice(mask, target))
    trial.notes["slice_images"] = black_box.images_queried - before
    return {"by_patient": {patient: float(np.mean(values)) for patient, values in by_patient.items()}}


ARMS: dict[str, Callable[[Trial], dict[str, Any]]] = {
    "unadapted": unadapted,
    "default": default,
    "slices_adapted": slices_adapted,
    "slices_unadapted": slices_unadapted,
    "zoom": zoom,
    "head": head,
    "visual_prompt": visual_prompt,
    "best_window": best_window,
    "unadapted_box": unadapted_box,
    "white_box": white_box,
}
"""Arms in the order in which they are run, the most informative first."""


def run(domain: Domain, arm: str, seed: int, max_predictions: int, training: int, test: int) -> dict[str, Any]:
    """Run one cell."""
    torch.manual_seed(seed)
    black_box = load_bundled_volume_model()
    chosen = [*cases(domain, "train"), *cases(domain, "validation")][:training]
    volumes, _ = load_volumes(chosen)
    reader, kept = CaseReader(), []
    for case in cases(domain, "test")[:test]:
        if reader.read(case)[1].any():
            kept.append(case)
    trial = Trial(black_box, volumes, kept, domain, VolumeSettings(seed=seed, max_predictions=max_predictions))
    start = time.monotonic()
    scores = ARMS[arm](trial)
    return {
        "domain": domain.name,
        "arm": arm,
        "seed": seed,
        "max_predictions": max_predictions,
        "weights_sha256": black_box.capabilities.weights_sha256,
        "training_patients": len(volumes),
        **scores,
        **trial.notes,
        "seconds": round(time.monotonic() - start, 1),
    }


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Average by domain and arm: over seeds by patient, then over patients with their sample standard deviation."""
    domains: dict[str, Any] = {}
    for name in dict.fromkeys(one["domain"] for one in runs):
        arms: dict[str, Any] = {}
        for arm in ARMS:
            cells = [one for one in runs if (one["domain"], one["arm"]) == (name, arm)]
            if not cells:
                continue
            patients = {p: float(np.mean([one["by_patient"][p] for one in cells])) for p in cells[0]["by_patient"]}
            values = list(patients.values())
            arms[arm] = {
                "dice": float(np.mean(values)),
                "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                "by_patient": patients,
                "seeds": len(cells),
            }
            for measure in ("by_clicks", "hd95_by_clicks"):
                if measure in cells[0]:
                    every = [[np.nan if v is None else v for v in one[measure]] for one in cells]
                    arms[arm][measure] = np.mean(every, axis=0).tolist()
        before = arms.get("unadapted", {}).get("by_patient", {})
        for one in arms.values():
            one["lost"] = sum(one["by_patient"][p] < before[p] for p in before) if before else None
        defaults = [one for one in runs if (one["domain"], one["arm"]) == (name, "default")]
        domains[name] = {
            "zero_shot": arms.get("unadapted", {}).get("dice"),
            "adapted": arms.get("default", {}).get("dice"),
            "whole_organ_2d": arms.get("slices_adapted", {}).get("dice"),
            "predictions": float(np.mean([one["predictions"] for one in defaults])) if defaults else None,
            "patients": len(before),
            "arms": arms,
        }
    return domains


def tables(domains: dict[str, Any]) -> list[str]:
    """Format Markdown tables: one click by arm, and the default by clicks."""
    lines = ["| domain | patients | " + " | ".join(ARMS) + " |", "| --- | --- " + "| --- " * len(ARMS) + "|"]
    for name, domain in domains.items():
        cells = []
        for arm in ARMS:
            one = domain["arms"].get(arm)
            if one is None:
                cells.append("")
                continue
            spread = f" ± {one['sd']:.3f}" if one["sd"] is not None else ""
            lost = f", {one['lost']} lost" if one["lost"] and arm != "unadapted" else ""
            cells.append(f"{one['dice']:.3f}{spread}{lost} ({one['seeds']})")
        lines.append(f"| {name} | {domain['patients']} | {' | '.join(cells)} |")
    lines += ["", "| domain | model | " + " | ".join(f"{n + 1} click{'s' if n else ''}" for n in range(CLICKS)) + " |"]
    lines.append("| --- | --- " + "| --- " * CLICKS + "|")
    for name, domain in domains.items():
        for arm in ("unadapted", "default"):
            if one := domain["arms"].get(arm):
                cells = [f"{d:.3f} ({h:.0f} mm)" for d, h in zip(one["by_clicks"], one["hd95_by_clicks"], strict=True)]
                lines.append(f"| {name} | {arm} | {' | '.join(cells)} |")
    return lines


def main(
    quick: Annotated[bool, typer.Option(help="Two domains, three arms, one seed, 150 predictions.")] = False,
    seeds: Annotated[int, typer.Option(help="Runs of each domain and arm.")] = 3,
    only: Annotated[str, typer.Option(help="Text in the names of the domains.")] = "",
    arms: Annotated[str, typer.Option(help="Arms, separated by commas. Default: all.")] = "",
    runs: Annotated[Path, typer.Option(help="Folder of the results of runs.")] = RUNS / "volumes",
    out: Annotated[Path, typer.Option(help="The JSON file of all results.")] = RESULTS / "volumes.json",
    report_only: Annotated[bool, typer.Option(help="Run nothing; summarise the existing results.")] = False,
    restart: Annotated[bool, typer.Option(help="Run what has a result again.")] = False,
    publish: Annotated[bool, typer.Option(help="Write the tables into docs/results.")] = False,
) -> None:
    """Run the benchmark."""
    if not ROOT.is_dir():
        raise SystemExit(f"There are no real images at {ROOT}. Set BAPS_REAL_DATA to the folder that holds them.")
    names: Sequence[str] = CORE
    predictions, training, test = VolumeSettings.max_predictions, _MAX_TRAINING, _MAX_TEST
    planned = arms.split(",") if arms else list(ARMS)
    if quick:
        names, planned, seeds = (CORE[0], CORE[4]), ["unadapted", "default", "zoom"], 1
        predictions, training, test = 150, 6, 4
        runs, out = runs.with_name("volumes-quick"), runs.with_name("volumes-quick.json")
    runs.mkdir(parents=True, exist_ok=True)

    def file_of(run: Mapping[str, Any]) -> Path:
        plain = "".join(c if c.isalnum() else "_" for c in run["domain"])
        return runs / f"{plain}-{run['arm']}-{run['seed']}-{run['max_predictions']}.json"

    if not restart:
        restore_runs(out, file_of)
    done = []
    for seed in range(seeds):
        for arm in planned:
            for domain in (one for one in DOMAINS if one.name in names and only in one.name):
                file = file_of({"domain": domain.name, "arm": arm, "seed": seed, "max_predictions": predictions})
                if restart or not file.exists():
                    if report_only:
                        continue
                    result = run(domain, arm, seed, predictions, training, test)
                    with atomic_write(file) as partial:
                        partial.write_text(json.dumps(result, indent=1))
                    mean = float(np.mean(list(result["by_patient"].values())))
                    console.print(f"{domain.name}, {arm}, seed {seed}: {mean:.3f} ({result['seconds']:.0f} s)")
                done.append(json.loads(file.read_text()))
    domains = summarise(done)
    for line in tables(domains):
        print(line)
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"domains": domains, "runs": done}, indent=1))
    if publish:
        write_between_marks(tables(domains), PAGES / "volumes.md", "bench-volumes")
    console.print(str(out))


if __name__ == "__main__":
    typer.run(main)
