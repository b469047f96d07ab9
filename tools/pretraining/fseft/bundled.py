"""Train the bundled organ model: ``python -m tools.pretraining.fseft.bundled --data DIR --out FILE --checkpoint FILE``.

The loss is partial-label Dice on random views of labelled CT volumes. The run resumes from its checkpoint
(``tools.pretraining.run``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from baps.fseft.losses import partial_dice_loss
from baps.fseft.models import build_swin_unetr
from baps.fseft.preprocessing import preprocess
from baps.io import read_labels, read_volume
from tools.pretraining.averaging import half_precision_state
from tools.pretraining.fseft.augmentation import random_view
from tools.pretraining.run import Run

ORGANS = {"spleen": 1, "kidney_right": 2, "kidney_left": 3, "liver": 6, "stomach": 7, "aorta": 8}
"""Values in the labels of BTCV. Its other organs stay unknown, so that adaptation to them can be measured."""
SPACING, VIEW_SIZE = 3.0, 96
FEATURES, WINDOW = 12, 4
WARM_UP_STEPS = 100


def read_patients(folder: Path, patients: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Read the first patients of a folder.

    Args:
        folder: folder with ``images`` and ``labels``.
        patients: number of patients.

    Returns:
        For each patient the image, (1, H, W, D) in [0, 1], and the labels, (1, H, W, D), class + 1.
    """
    cases = []
    for path in sorted((folder / "images").iterdir())[:patients]:
        volume = read_volume(path)
        labels = read_labels(folder / "labels" / path.name, volume)
        prepared = preprocess(volume, SPACING, VIEW_SIZE)
        index = torch.zeros(prepared.image.shape, dtype=torch.uint8)
        for number, value in enumerate(ORGANS.values(), 1):
            index[prepared.mask(labels == value)] = number
        cases.append((prepared.image, index))
    return cases


class _Views(IterableDataset):  # type: ignore[type-arg]
    """Random views. View ``n`` depends only on the seed and ``n``, so a resumed run sees the same."""

    def __init__(self, patients: Sequence[tuple[torch.Tensor, torch.Tensor]], first: int, seed: int) -> None:
        self.patients, self.first, self.seed = patients, first, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        torch.set_num_threads(1)
        index = self.first
        while True:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
            image, labels = self.patients[int(torch.randint(len(self.patients), (), generator=generator))]
            known = torch.tensor([bool((labels == number).any()) for number in range(1, len(ORGANS) + 1)])
            view, view_labels = random_view(image, labels, VIEW_SIZE, generator)
            yield view[None], view_labels[None], known[None]
            index += 1


def train(
    data: Annotated[Path, typer.Option(help="Folder with images/ and labels/, NIfTI, labelled as BTCV.")],
    out: Annotated[Path, typer.Option(help="Weights to write, .safetensors (half precision).")],
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint of the run, from which it resumes.")],
    patients: Annotated[int, typer.Option(help="Number of patients to train on, the first by name.")] = 6,
    steps: Annotated[int, typer.Option(help="Total number of steps, including earlier runs.")] = 6_000,
    decay: Annotated[int, typer.Option(help="Number of steps during which the step size falls to zero.")] = 2_000,
    rate: Annotated[float, typer.Option(help="Step size of AdamW.")] = 1e-3,
    seed: Annotated[int, typer.Option()] = 0,
    minutes: Annotated[float, typer.Option(help="Stop after this time; the run can be resumed.")] = 600.0,
) -> None:
    """Train the bundled organ model, or resume its training."""
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_swin_unetr(tuple(ORGANS), FEATURES, WINDOW).to(device).to(memory_format=torch.channels_last_3d)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)

    def publish(average: nn.Module, done: int) -> None:
        save_file(half_precision_state(average), out)
        record = {
            "classes": list(ORGANS),
            "features": FEATURES,
            "window": WINDOW,
            "spacing": SPACING,
            "side": VIEW_SIZE,
            "steps": done,
            "trained_on": f"BTCV, {patients} CT patients",
        }
        out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")

    run = Run(model, optimiser, checkpoint, steps, WARM_UP_STEPS, decay, publish)
    views = iter(DataLoader(_Views(read_patients(data, patients), run.done, seed), batch_size=None, num_workers=1))
    model.train()
    while run.should_continue(minutes):
        image, labels, known = (part.to(device) for part in next(views))
        with torch.autocast(device, torch.bfloat16):
            logits = model(image.contiguous(memory_format=torch.channels_last_3d))
        target = torch.cat([labels == number for number in range(1, len(ORGANS) + 1)], 1).float()
        loss = partial_dice_loss(logits.float().sigmoid(), target, known)
        run.step(loss, 1, max_weight=0.998, smoothing=0.98)
    run.save()


if __name__ == "__main__":
    typer.run(train)
