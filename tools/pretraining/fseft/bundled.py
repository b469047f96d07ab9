"""Train the bundled organ model: ``python -m tools.pretraining.fseft.bundled --data DIR --out FILE --checkpoint FILE``.

The loss is partial-label Dice and cross-entropy on random views of labelled CT volumes. The run resumes from its
checkpoint (``tools.pretraining.run``). Now and then it measures the average of its weights on whole volumes of the
patients that follow the training patients.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from baps.fseft.inference import compute_inputs
from baps.fseft.losses import partial_dice_loss
from baps.fseft.models import FoundationModel, build_swin_unetr
from baps.fseft.preprocessing import PreparedVolume, preprocess
from baps.imaging.metrics import dice
from baps.io import read_labels, read_volume
from tools.pretraining.averaging import half_precision_state
from tools.pretraining.fseft.augmentation import random_view
from tools.pretraining.run import Run

ORGANS = {"spleen": 1, "kidney_right": 2, "kidney_left": 3, "liver": 6, "stomach": 7, "aorta": 8}
"""Values in the labels of BTCV. Its other organs stay unknown, so that adaptation to them can be measured; their labels
serve the augmentation alone."""
SPACING, VIEW_SIZE = 3.0, 96
FEATURES, WINDOW = 12, 4
WARM_UP_STEPS = 100


@dataclass(frozen=True)
class Patient:
    """A labelled volume.

    Attributes:
        name: name of its file.
        prepared: the image, see ``preprocess``.
        labels: values of BTCV on the image's voxels, (1, H, W, D).
        truth: values of BTCV on the volume's voxels.
    """

    name: str
    prepared: PreparedVolume
    labels: torch.Tensor
    truth: NDArray[np.uint8]


def read_patients(folder: Path, first: int, last: int) -> list[Patient]:
    """Read patients of a folder, in the order of their names.

    Args:
        folder: folder with ``images`` and ``labels``.
        first: index of the first patient.
        last: index after the last one.

    Returns:
        The patients.
    """
    patients = []
    for path in sorted((folder / "images").iterdir())[first:last]:
        volume = read_volume(path)
        truth = read_labels(folder / "labels" / path.name, volume)
        prepared = preprocess(volume, SPACING, VIEW_SIZE)
        labels = torch.zeros(prepared.image.shape, dtype=torch.uint8)
        for value in np.unique(truth[truth > 0]).tolist():
            labels[prepared.mask(truth == value)] = value
        patients.append(Patient(path.name.split(".")[0], prepared, labels, truth.astype(np.uint8)))
    return patients


def measure(model: FoundationModel, patients: Sequence[Patient]) -> dict[str, dict[str, float]]:
    """Measure Dice on whole volumes, as ``baps organs evaluate`` does without an adapter.

    Args:
        model: the model.
        patients: patients that it was not trained on.

    Returns:
        Dice by organ, by patient.
    """
    scores: dict[str, dict[str, float]] = {}
    for patient in patients:
        probabilities = compute_inputs(model, "probabilities", patient.prepared.image, VIEW_SIZE)
        scores[patient.name] = {
            organ: round(dice(patient.prepared.restore(probabilities[[index]]) > 0.5, patient.truth == value), 4)
            for index, (organ, value) in enumerate(ORGANS.items())
        }
    return scores


class _Views(IterableDataset):  # type: ignore[type-arg]
    """Random views. View ``n`` depends only on the seed and ``n``, so a resumed run sees the same."""

    def __init__(self, patients: Sequence[Patient], first: int, seed: int) -> None:
        self.patients, self.first, self.seed = patients, first, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        torch.set_num_threads(1)
        index = self.first
        while True:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
            patient = self.patients[int(torch.randint(len(self.patients), (), generator=generator))]
            known = torch.tensor([bool((patient.labels == value).any()) for value in ORGANS.values()])
            view, view_labels = random_view(patient.prepared.image, patient.labels, VIEW_SIZE, generator)
            yield view[None], view_labels[None], known[None]
            index += 1


def train(
    data: Annotated[list[Path], typer.Option(help="Folder with images/ and labels/, NIfTI, labelled as BTCV. Repeat.")],
    out: Annotated[Path, typer.Option(help="Weights to write, .safetensors (half precision).")],
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint of the run, from which it resumes.")],
    start: Annotated[Path | None, typer.Option(help="Published weights to start from. Default: random.")] = None,
    patients: Annotated[int, typer.Option(help="Number of patients of each folder, the first by name.")] = 6,
    validation: Annotated[int, typer.Option(help="Number of patients to measure, the next of the first folder.")] = 2,
    measure_every: Annotated[int, typer.Option(help="Number of steps between measurements.")] = 500,
    steps: Annotated[int, typer.Option(help="Total number of steps, including earlier runs.")] = 6_000,
    decay: Annotated[int, typer.Option(help="Number of steps during which the step size falls to zero.")] = 2_000,
    rate: Annotated[float, typer.Option(help="Step size of AdamW.")] = 1e-3,
    seed: Annotated[int, typer.Option()] = 0,
    minutes: Annotated[float, typer.Option(help="Stop after this time; the run can be resumed.")] = 600.0,
    workers: Annotated[int, typer.Option(help="Number of processes that draw views; 0 for none of their own.")] = 1,
) -> None:
    """Train the bundled organ model, or resume its training."""
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_swin_unetr(tuple(ORGANS), FEATURES, WINDOW)
    if start is not None:
        model.load_state_dict({name: tensor.float() for name, tensor in load_file(start).items()})
    model.to(device).to(memory_format=torch.channels_last_3d)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)
    cases = [patient for folder in data for patient in read_patients(folder, 0, patients)]
    kept_back = read_patients(data[0], patients, patients + validation)

    def publish(average: nn.Module, done: int) -> None:
        save_file(half_precision_state(average), out)
        record = {
            "classes": list(ORGANS),
            "features": FEATURES,
            "window": WINDOW,
            "spacing": SPACING,
            "side": VIEW_SIZE,
            "steps": done,
            "trained_on": f"BTCV, {len(cases)} CT patients",
        }
        out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")

    run = Run(model, optimiser, checkpoint, steps, WARM_UP_STEPS, decay, publish)
    views = iter(DataLoader(_Views(cases, run.done, seed), batch_size=None, num_workers=workers))

    def report() -> None:
        scores = measure(cast(FoundationModel, run.average), kept_back)
        print(json.dumps({"steps": run.done, "dice": scores}), flush=True)

    report()
    model.train()
    while run.should_continue(minutes):
        image, labels, known = (part.to(device) for part in next(views))
        with torch.autocast(device, torch.bfloat16):
            logits = model(image.contiguous(memory_format=torch.channels_last_3d))
        target = torch.cat([labels == value for value in ORGANS.values()], 1).float()
        logits = logits.float()
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((2, 3, 4))[known].mean()
        loss = partial_dice_loss(logits.sigmoid(), target, known) + entropy
        run.step(loss, 1, max_weight=0.998, smoothing=0.98)
        if run.done % measure_every == 0:
            run.save()
            report()
    run.save()


if __name__ == "__main__":
    typer.run(train)
