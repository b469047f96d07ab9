"""Simulate on-site learning over weeks: patients arrive one by one, later with another organ and another scanner.

``python -m benchmarks.adaptation.weekly_training`` processes the patients of two real data sets in order. Before
training on a patient's labels, it measures the served adapter and the unadapted model on the patient (one click). Then
a training on all labels so far starts from the served adapter, with 1,000 black-box images per organ, and the candidate
is published only if it is accepted. The script prints the results and writes
``benchmarks/results/weekly_training.json`` and ``docs/pictures/weekly_training.png``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from baps.blackbox import load_black_box
from baps.evaluation.slices import AnySlice
from baps.registry.store import SHARED, AdapterStore
from baps.training.publishing import adapt_and_publish
from baps.training.settings import AdaptationSettings
from benchmarks.adaptation.arms import score
from benchmarks.paths import PICTURES, RESULTS
from benchmarks.real_data import DOMAINS, ROOT, slices

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ARRIVALS = (
    *(("BTCV", number, ("spleen",)) for number in range(3)),
    *(("BTCV", number, ("spleen", "liver")) for number in range(3, 8)),
    *(("CHAOS", number, ("spleen", "liver")) for number in range(4)),
    ("BTCV", 8, ("spleen", "liver")),
    ("CHAOS", 4, ("spleen", "liver")),
    ("BTCV", 9, ("spleen", "liver")),
    ("CHAOS", 5, ("spleen", "liver")),
)
"""Data set, number of the patient in it, and the labelled organs: CT first, a second organ from the fourth patient,
then MR."""

_MODALITY = {"BTCV": "CT", "CHAOS": "MR"}
_CLICK_SETS = 3


def _patients(side: int) -> dict[tuple[str, int, str], list[Any]]:
    slices_by_patient = {}
    for collection, modality in _MODALITY.items():
        for organ in ("spleen", "liver"):
            domain = next(d for d in DOMAINS if d.name == f"{collection} {organ}, {modality}")
            parts = [p for split in ("train", "validation", "test") for p in slices(domain, split, side, 16)]
            slices_by_patient.update({(collection, number, organ): pieces for number, pieces in enumerate(parts)})
    return slices_by_patient


def main(
    max_images: Annotated[int, typer.Option(help="Black-box images of each training.")] = 1000,
    max_arrivals: Annotated[int, typer.Option(help="Maximum number of arrivals.")] = len(ARRIVALS),
    out: Annotated[Path, typer.Option()] = RESULTS / "weekly_training.json",
    figure: Annotated[Path, typer.Option()] = PICTURES / "weekly_training.png",
) -> None:
    """Simulate the arrivals."""
    if not ROOT.is_dir():
        raise SystemExit(f"There are no real images at {ROOT}. Set BAPS_REAL_DATA to the folder that holds them.")
    console = Console(soft_wrap=True, highlight=False)
    black_box, examiner = load_black_box(), load_black_box()
    slices_by_arrival = _patients(black_box.capabilities.input_size)
    labelled: dict[str, dict[str, list[AnySlice]]] = {}
    course: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        store = AdapterStore(Path(folder))
        for week, (collection, number, organs) in enumerate(ARRIVALS[:max_arrivals], start=1):
            for organ in organs:
                pieces = slices_by_arrival[collection, number, organ]
                served = store.served(organ, *black_box.capabilities.identity)
                adapter = store.load(*served).adapter if served else None
                row: dict[str, Any] = {
                    "week": week, "patient": f"{collection} {number}", "organ": organ,
                    "served": "/".join(served) if served else None,
                    "unadapted": score(examiner, None, [pieces], _CLICK_SETS)[0],
                    "adapted": score(examiner, adapter, [pieces], _CLICK_SETS)[0],
                }  # fmt: skip
                labelled.setdefault(organ, {})[f"{collection} {number}"] = pieces
                settings = AdaptationSettings(max_images=max_images, seed=week)
                outcome = adapt_and_publish(store, (organ,), black_box, labelled[organ], settings)
                row.update(version=outcome["version"], status=outcome["status"], reason=outcome["reason"])
                course.append(row)
                console.print(
                    f"week {week}, {row['patient']}, {organ}: unadapted {row['unadapted']:.3f}, served "
                    f"{row['adapted']:.3f}; then {row['version']} {row['status']}"
                )
            if len(labelled) > 1:
                shared: dict[str, list[AnySlice]] = {}
                for patients in labelled.values():
                    for patient, pieces in patients.items():
                        shared.setdefault(patient, []).extend(pieces)
                outcome = adapt_and_publish(
                    store, (SHARED,), black_box, shared, AdaptationSettings(max_images=max_images, seed=week)
                )
                console.print(f"week {week}, shared adapter: {outcome['version']} {outcome['status']}")
        history = {label or "shared": store.versions(label) for label in store.labels()}
    table = Table("organ", "patients", "unadapted", "served", "worse than unadapted", "versions")
    for organ in labelled:
        rows = [row for row in course if row["organ"] == organ]
        worse = sum(row["adapted"] < row["unadapted"] - 0.02 for row in rows)
        means = [f"{np.mean([row[arm] for row in rows]):.3f}" for arm in ("unadapted", "adapted")]
        table.add_row(organ, str(len(rows)), *means, str(worse), str(len(history[organ])))
    console.print(table)
    out.write_text(json.dumps({"max_images": max_images, "course": course}, indent=1))
    _draw(course, figure)


def _draw(course: list[dict[str, Any]], file: Path) -> None:
    organs = list(dict.fromkeys(row["organ"] for row in course))
    figure, axes = plt.subplots(1, len(organs), figsize=(5 * len(organs), 3.4), squeeze=False)
    for axis, organ in zip(axes[0], organs, strict=True):
        rows = [row for row in course if row["organ"] == organ]
        positions = range(len(rows))
        axis.plot(positions, [row["unadapted"] for row in rows], marker=".", color="gray", label="unadapted")
        axis.plot(positions, [row["adapted"] for row in rows], marker="o", label="served adapter")
        axis.set_xticks(list(positions), [row["patient"] for row in rows], rotation=70, fontsize=7)
        axis.set_title(f"{organ}: Dice on each patient before training on it", fontsize=9)
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    typer.run(main)
