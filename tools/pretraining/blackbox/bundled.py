"""Train the bundled promptable model: ``python -m tools.pretraining.blackbox.bundled --photographs DIR --out FILE``.

The run resumes from its checkpoint (``tools.pretraining.run``); the number of pictures and the size of the input can be
raised later.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from baps.blackbox.bundled_model import build_bundled_model
from baps.blackbox.decoding import decode_masks
from tools.pretraining.averaging import half_precision_state
from tools.pretraining.blackbox.photographs import Photographs
from tools.pretraining.blackbox.prompts import Targets, draw_targets
from tools.pretraining.blackbox.scenes import Scenes, draw_scenes
from tools.pretraining.losses import mask_loss
from tools.pretraining.run import Run

BATCH_SIZE = 16
TARGETS_PER_PICTURE = 3
PHOTOGRAPH_SHARE = 0.2
WARM_UP_PICTURES = 8_000


class _Batches(IterableDataset):  # type: ignore[type-arg]
    """Pictures and targets. Batch ``n`` depends only on the seed and ``n``, so a resumed run sees the same."""

    def __init__(self, folder: Path, size: int, first: int, seed: int) -> None:
        self.photographs = Photographs(folder)
        self.size, self.first, self.seed = size, first, seed

    def __iter__(self) -> Iterator[tuple[Scenes, Targets]]:
        torch.set_num_threads(1)
        number = self.first
        while True:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            if torch.rand(1, generator=generator) < PHOTOGRAPH_SHARE:
                scenes = self.photographs.draw(generator, BATCH_SIZE, self.size)
            else:
                scenes = draw_scenes(generator, BATCH_SIZE, self.size, self.photographs.pictures)
            yield scenes, draw_targets(generator, scenes, TARGETS_PER_PICTURE)
            number += 1


def _loss(masks: torch.Tensor, iou: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Train the first mask of each target (N, M, h, w) always, and of the others the best one."""
    expected = targets.unsqueeze(1).expand_as(masks)
    losses = mask_loss(masks, expected)
    with torch.no_grad():
        hard = masks > 0
        overlap = (hard & (expected > 0.5)).sum((-2, -1)).float()
        true_iou = overlap / ((hard | (expected > 0.5)).sum((-2, -1)) + 1e-6)
    return losses[:, 0].mean() + losses[:, 1:].amin(1).mean() + F.mse_loss(iou, true_iou)


def train(
    photographs: Annotated[Path, typer.Option(help="Folder with images/ and labels/ (YOLO polygons).")],
    out: Annotated[Path, typer.Option(help="Weights to write, .safetensors (half precision).")],
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint of the run, from which it resumes.")],
    images: Annotated[int, typer.Option(help="Total number of pictures, including earlier runs.")] = 70_000,
    decay: Annotated[int, typer.Option(help="Number of pictures during which the step size falls to zero.")] = 20_000,
    size: Annotated[int, typer.Option(help="Width and height of the input, pixels.")] = 128,
    rate: Annotated[float, typer.Option(help="Step size of AdamW.")] = 1e-3,
    seed: Annotated[int, typer.Option()] = 0,
    minutes: Annotated[float, typer.Option(help="Stop after this time; the run can be resumed.")] = 600.0,
) -> None:
    """Train the bundled model, or resume its training."""
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_bundled_model(size).to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)

    def publish(average: nn.Module, done: int) -> None:
        save_file(half_precision_state(average), out, metadata={"pictures": str(done), "trained_at": str(size)})

    run = Run(model, optimiser, checkpoint, images, WARM_UP_PICTURES, decay, publish)
    batches = iter(
        DataLoader(_Batches(photographs, size, run.done // BATCH_SIZE, seed), batch_size=None, num_workers=1)
    )
    while run.should_continue(minutes):
        scenes, targets = next(batches)
        pictures = torch.stack([model.preprocess(image) for image in scenes.images.to(device)])
        embeddings = model.image_encoder(pictures.contiguous(memory_format=torch.channels_last))
        index = targets.image.to(device)
        expected = F.avg_pool2d(targets.masks.to(device).unsqueeze(1), 2)[:, 0]
        position = model.prompt_encoder.get_dense_pe()
        by_click = torch.arange(len(index), device=device) % 3 != 0  # Two thirds by click, one third by box.
        loss = torch.zeros((), device=device)
        for selected, boxed in ((by_click, False), (~by_click, True)):
            rows = selected.nonzero().flatten()
            points = None
            if not boxed:
                points = (targets.points.to(device)[rows], targets.signs.to(device)[rows])
            boxes = targets.boxes.to(device)[rows] if boxed else None
            sparse, dense = model.prompt_encoder(points, boxes, None)
            masks, iou = decode_masks(model.mask_decoder, embeddings[index[rows]], position, sparse, dense)
            loss = loss + _loss(masks, iou, expected[rows]) * (len(rows) / len(index))
        run.step(loss, BATCH_SIZE, max_weight=0.999, smoothing=0.99)
    run.save()


if __name__ == "__main__":
    typer.run(train)
