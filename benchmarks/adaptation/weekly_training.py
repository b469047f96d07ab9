"""Simulate on-site learning over weeks: patients arrive one by one, in two streams later from another scanner.

``python -m benchmarks.adaptation.weekly_training`` processes the patients of real data sets in order. Each patient is
first segmented from one click by the unadapted model, by what serves, and by the newest candidate, which is evidence
for the active adapters, as on a server. Then the patient's label is there, and at some patients a training on all
labels so far follows, with 1,000 black-box images, after which the gate decides what serves.

Beside the gate stands the rule of version 0.1 on the same candidates: serve a candidate if its gain over the patients
of the training exceeds zero and its standard error, and is no less than that of the version before, less the standard
error. The regret is the Dice lost for a patient against the better of the unadapted model and the newest candidate, in
the mean of the stream. A claim counts as wrong if the version loses in the mean of the patients who came after it.

The script prints the results and writes ``benchmarks/results/weekly_training.json`` and
``docs/pictures/weekly_training.png``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from baps.blackbox import BlackBox, load_black_box
from baps.evaluation.slices import LabelledSlice
from baps.evaluation.splits import patient_hash
from baps.registry.evidence import change_evidence, evidence_key, read_statuses
from baps.registry.store import AdapterStore
from baps.training.publishing import adapt_and_publish
from baps.training.settings import AdaptationSettings
from benchmarks.adaptation.arms import score
from benchmarks.paths import PICTURES, RESULTS
from benchmarks.real_data import DOMAINS, ROOT, slices

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SCANNERS = {"spleen": range(10), "liver": range(3, 10)}
"""Organs of the streams in which MR follows CT, and the CT patients who come."""

PICTURES_TRAINED_AT = (3, 5, 8, 12, 20, 32)
"""Numbers of labelled patients at which a training follows in the other streams."""

OTHERS = (
    "hippocampus, MR",
    "white blood cell, microscopy",
    "polyp, endoscopy",
    "skin lesion, dermoscopy 2018",
    "lungs, chest X-ray",
)
"""Other streams; test patients are left out."""

_CLICK_SETS = 3
_SLICES = 16


@dataclass(frozen=True)
class Stream:
    """Patients who arrive one by one.

    Attributes:
        name: name of the stream, which is the label.
        patients: name and slices of each patient.
        trained_at: numbers of labelled patients at which a training follows.
    """

    name: str
    patients: list[tuple[str, list[LabelledSlice]]]
    trained_at: frozenset[int]


def load_streams(side: int, only: str) -> Iterator[Stream]:
    """Load the streams.

    Args:
        side: side of the canvas, pixels.
        only: text in the names of the streams.

    Yields:
        The streams, one at a time.
    """
    domains = {domain.name: domain for domain in DOMAINS}

    def patients(name: str, *splits: str) -> list[list[LabelledSlice]]:
        return [pieces for split in splits for pieces in slices(domains[name], split, side, _SLICES)]

    for organ, numbers in SCANNERS.items():
        name = f"{organ}, CT then MR"
        if only in name:
            ct = patients(f"BTCV {organ}, CT", "train", "validation", "test")
            mr = patients(f"CHAOS {organ}, MR", "train", "validation", "test")
            order = [(f"CT {number}", ct[number]) for number in numbers if number < len(ct)]
            order[-2:-2] = [(f"MR {number}", pieces) for number, pieces in enumerate(mr[:4])]
            order += [(f"MR {number}", pieces) for number, pieces in enumerate(mr[4:], 4)]
            yield Stream(name, order, frozenset(range(2, len(order) + 1)))
    for name in OTHERS:
        if only in name:
            order = [(pieces[0].patient, pieces) for pieces in patients(name, "train", "validation")]
            yield Stream(name, order, frozenset(PICTURES_TRAINED_AT))


def live(stream: Stream, black_box: BlackBox, examiner: BlackBox, max_images: int, console: Console) -> dict[str, Any]:
    """Let the patients of a stream come.

    Args:
        stream: the patients.
        black_box: the model, for trainings.
        examiner: the same model, for the patients who come.
        max_images: black-box images of each training.
        console: where to print.

    Returns:
        What happened to every patient, and the means.
    """
    key = evidence_key(*examiner.capabilities.identity)
    labelled: dict[str, list[LabelledSlice]] = {}
    course: list[dict[str, Any]] = []
    later: dict[str, list[float]] = {}  # Differences of later patients, by version.
    former: str | None = None
    claimed: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        store = AdapterStore(Path(folder))
        for patient, pieces in stream.patients:
            served, newest = store.published(stream.name), next(reversed(store.versions(stream.name)), None)
            dice: dict[str | None, float] = {None: score(examiner, None, [pieces], _CLICK_SETS)[0]}
            for version in sorted({served, newest, former, *claimed} - {None}):  # type: ignore[type-var]
                dice[version] = score(examiner, store.load(stream.name, str(version)).adapter, [pieces], _CLICK_SETS)[0]
                later.setdefault(str(version), []).append(dice[version] - dice[None])
            if newest:
                with change_evidence(store, stream.name, examiner.capabilities.identity) as evidence:
                    for judged in evidence.gate.active_streams(key):
                        difference = dice[judged.candidate] - dice[None]
                        judged.add_volume(patient_hash(patient), patient_hash(patient), "label", difference)
            best = max(dice[None], dice[newest])
            row: dict[str, Any] = {
                "patient": patient, "served": served, "former": former, "unadapted": dice[None],
                "adapted": dice[served], "adapted_former": dice[former],
                "regret": best - dice[served], "regret_former": best - dice[former],
            }  # fmt: skip
            labelled[patient] = pieces
            if len(labelled) in stream.trained_at:
                settings = AdaptationSettings(max_images=max_images, seed=len(labelled))
                outcome = adapt_and_publish(store, (stream.name,), black_box, labelled, settings)
                former = _former_choice(store, stream.name, former, outcome["version"])
                row["trained"] = {"version": outcome["version"], "reason": outcome["reason"]}
                console.print(f"{stream.name}, {len(labelled)} patients: {outcome['version']} {outcome['reason']}")
            statuses = read_statuses(store, stream.name)
            claimed |= {version for version, status in statuses.items() if status.state.value == "published"}
            course.append(row)
    judged_claims = {version: float(np.mean(later[version])) for version in sorted(claimed) if version in later}
    after = [row for row in course if course.index(row) >= min(stream.trained_at)]
    means = {key: float(np.mean([row[key] for row in after])) for key in course[0] if isinstance(course[0][key], float)}
    return {
        "course": course,
        "patients_after_the_first_training": len(after),
        "means": means,
        "later_gain_of_claims": judged_claims,
        "wrong_claims": sum(gain <= 0 for gain in judged_claims.values()),
    }


def _former_choice(store: AdapterStore, label: str, served: str | None, candidate: str) -> str | None:
    """Return the version that the rule of version 0.1 serves after a training."""
    verdict = store.record(label, candidate)["verdict"]
    error = verdict["standard_error"] if verdict else None
    if error is None or verdict["gain"] <= max(0, error):
        return served
    before = store.record(label, served)["verdict"]["gain"] if served else 0
    return candidate if verdict["gain"] + error >= before else served


def main(
    max_images: Annotated[int, typer.Option(help="Black-box images of each training.")] = 1000,
    max_patients: Annotated[int, typer.Option(help="Maximum number of patients of a stream.")] = 1000,
    only: Annotated[str, typer.Option(help="Text in the names of the streams.")] = "",
    out: Annotated[Path, typer.Option(help="File of the results.")] = RESULTS / "weekly_training.json",
    figure: Annotated[Path, typer.Option(help="File of the picture.")] = PICTURES / "weekly_training.png",
) -> None:
    """Let the patients of every stream come, and print and write what they were served."""
    if not ROOT.is_dir():
        raise SystemExit(f"There are no real images at {ROOT}. Set BAPS_REAL_DATA to the folder that holds them.")
    console = Console(soft_wrap=True, highlight=False)
    black_box, examiner = load_black_box(), load_black_box()
    results: dict[str, Any] = json.loads(out.read_text()).get("streams", {}) if only and out.exists() else {}
    for stream in load_streams(black_box.capabilities.input_size, only):
        first = Stream(stream.name, stream.patients[:max_patients], stream.trained_at)
        results[stream.name] = live(first, black_box, examiner, max_images, console)
        out.write_text(json.dumps({"max_images": max_images, "streams": results}, indent=1))
    table = Table("stream", "patients", "unadapted", "served", "regret", "version 0.1", "its regret", "wrong claims")
    for name, result in results.items():
        keys = ("unadapted", "adapted", "regret", "adapted_former", "regret_former")
        means = [f"{result['means'][key]:.3f}" for key in keys]
        claims = f"{result['wrong_claims']} of {len(result['later_gain_of_claims'])}"
        table.add_row(name, str(result["patients_after_the_first_training"]), *means, claims)
    Console(width=140).print(table)
    _draw(results, figure)


def _draw(results: dict[str, Any], file: Path) -> None:
    columns = 2
    rows = -(-len(results) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(6 * columns, 3 * rows), squeeze=False)
    for axis in axes.flat[len(results) :]:
        axis.remove()
    for axis, (name, result) in zip(axes.flat, results.items(), strict=False):
        course = result["course"]
        positions = range(len(course))
        axis.plot(positions, [row["unadapted"] for row in course], marker=".", color="gray", label="unadapted")
        axis.plot(positions, [row["adapted"] for row in course], marker="o", markersize=3, label="served")
        axis.set_title(f"{name}: Dice on each patient before training on it", fontsize=9)
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    typer.run(main)
