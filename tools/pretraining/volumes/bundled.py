"""Train the bundled volumetric model: ``python -m tools.pretraining.volumes.bundled --out FILE --checkpoint FILE``.

The loss is soft Dice + 2 x cross-entropy of the cube. The run resumes from its checkpoint (``tools.pretraining.run``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from baps.blackbox.volumes.bundled_network import SIDE, VolumeNetwork, network_input
from tools.pretraining.averaging import half_precision_state
from tools.pretraining.losses import mask_loss
from tools.pretraining.run import Run
from tools.pretraining.volumes.prompts import draw_volume_targets
from tools.pretraining.volumes.scenes import draw_volume_scenes

SCENES, TARGETS_PER_SCENE = 2, 2
WARM_UP_STEPS = 200


class _Batches(IterableDataset):  # type: ignore[type-arg]
    """Inputs and targets. Batch ``n`` depends only on the seed and ``n``, so a resumed run sees the same."""

    def __init__(self, first: int, seed: int) -> None:
        self.first, self.seed = first, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        torch.set_num_threads(1)
        number = self.first
        while True:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            scenes = draw_volume_scenes(generator, SCENES, SIDE)
            targets = draw_volume_targets(generator, scenes, TARGETS_PER_SCENE)
            channels = (targets.masks, targets.positive, targets.negative, targets.region)
            yield network_input(scenes.images[targets.scene], *channels), targets.targets
            number += 1


def cube_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Compute the loss of cubes, averaged over them.

    Args:
        logits: predictions, (B, S, S, S).
        targets: true masks, 0 or 1, (B, S, S, S).

    Returns:
        The loss, a scalar.
    """
    return mask_loss(logits.flatten(2), targets.flatten(2)).mean()


def train(
    out: Annotated[Path, typer.Option(help="Weights to write, .safetensors (half precision).")],
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint of the run, from which it resumes.")],
    steps: Annotated[int, typer.Option(help="Total number of steps, including earlier runs.")] = 12_000,
    decay: Annotated[int, typer.Option(help="Number of steps during which the step size falls to zero.")] = 4_000,
    rate: Annotated[float, typer.Option(help="Step size of AdamW.")] = 1.5e-3,
    seed: Annotated[int, typer.Option()] = 0,
    minutes: Annotated[float, typer.Option(help="Stop after this time; the run can be resumed.")] = 600.0,
) -> None:
    """Train the bundled volumetric model, or resume its training."""
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = VolumeNetwork().to(device).to(memory_format=torch.channels_last_3d)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)

    def publish(average: nn.Module, done: int) -> None:
        save_file(half_precision_state(average), out)
        record = {"side": SIDE, "steps": done, "trained_on": "procedural volumes; no medical image"}
        out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")

    run = Run(model, optimiser, checkpoint, steps, WARM_UP_STEPS, decay, publish)
    batches = iter(DataLoader(_Batches(run.done, seed), batch_size=None, num_workers=1))
    while run.should_continue(minutes):
        cubes, targets = (part.to(device) for part in next(batches))
        with torch.autocast(device, torch.bfloat16):
            logits = model(cubes.contiguous(memory_format=torch.channels_last_3d))
        run.step(cube_loss(logits[:, 0].float(), targets), 1, max_weight=0.998, smoothing=0.98)
    run.save()


if __name__ == "__main__":
    typer.run(train)
