"""Measure the share of the black box in the time of an adaptation: images per second, with and without the rest.

``make bench-throughput`` adapts the bundled model to the phantoms, and then runs only the model on the same batches.
With a GPU it also does so for SAM ViT-B with random weights, which take the time of real ones. The time for reading
volumes is excluded. ``training_load.py`` measures the memory by the number of volumes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from segment_anything import sam_model_registry

from baps.blackbox import BlackBox, load_black_box
from baps.blackbox.sam import SamBlackBox
from baps.demo.run import VALUE
from baps.evaluation.cases import Case, load_cases
from baps.prompts import Prompt
from baps.training.adapt import adapt
from baps.training.settings import AdaptationSettings
from benchmarks.adaptation.wrapped import Wrapped
from benchmarks.paths import RESULTS, SAMPLE_DATA

SAMPLES = SAMPLE_DATA / "ct"


class RecordingBlackBox(Wrapped):
    """Records its batches."""

    def __init__(self, inner: BlackBox) -> None:
        super().__init__(inner)
        self.batches: list[tuple[NDArray[np.uint8], Sequence[Prompt]]] = []

    def _segment(self, images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        self.batches.append((images, prompts))
        return self.inner.segment(images, prompts)


def measure(black_box: BlackBox, max_images: int, head: str) -> dict[str, float | str]:
    """Measure the images per second of an adaptation, and of the black box alone on the same batches."""
    capabilities = black_box.capabilities
    files = sorted((SAMPLES / "images").glob("*.nii.gz"))
    cases = [Case(file, SAMPLES / "labels" / file.name, VALUE, file.name) for file in files]
    slices, _ = load_cases(cases, capabilities.input_size, 24)
    slices_in_memory = {patient: list(pieces) for patient, pieces in slices.items()}
    recording = RecordingBlackBox(black_box)
    black_box.segment(
        np.zeros((2, capabilities.input_size, capabilities.input_size, 3), np.uint8), [Prompt(((9.0, 9.0),))] * 2
    )
    start = time.perf_counter()
    adaptation = adapt(recording, slices_in_memory, AdaptationSettings(max_images=max_images, head=head))
    adaptation_seconds = time.perf_counter() - start
    start = time.perf_counter()
    for images, prompts in recording.batches:
        black_box.segment(images, prompts)
    model_seconds = time.perf_counter() - start
    images = adaptation.record["black_box_images"]
    return {
        "black_box": capabilities.name,
        "head": head,
        "images": images,
        "whole_images_per_second": images / adaptation_seconds,
        "bare_images_per_second": images / model_seconds,
        "overhead": adaptation_seconds / model_seconds - 1,
    }


def main(
    max_images: Annotated[int, typer.Option(help="Maximum number of black-box images of each adaptation.")] = 1500,
    out: Annotated[Path, typer.Option()] = RESULTS / "throughput.json",
) -> None:
    """Measure, print the figures and write them."""
    rows = [measure(load_black_box(device="cpu"), max_images, head) for head in ("none", "convolutional")]
    if torch.cuda.is_available():
        torch.manual_seed(0)
        sam = SamBlackBox(sam_model_registry["vit_b"]().cuda(), "sam_vit_b, random weights, GPU", batch_size=8)
        rows += [measure(sam, max_images, head) for head in ("none", "convolutional")]
    table = Table("black box", "head", "images", "whole, images/s", "bare, images/s", "overhead")
    for row in rows:
        table.add_row(
            str(row["black_box"]), str(row["head"]), str(row["images"]), f"{row['whole_images_per_second']:.1f}",
            f"{row['bare_images_per_second']:.1f}", f"{100 * float(row['overhead']):.0f} %",
        )  # fmt: skip
    Console().print(table)
    out.write_text(json.dumps({"threads": torch.get_num_threads(), "rows": rows}, indent=1))


if __name__ == "__main__":
    typer.run(main)
