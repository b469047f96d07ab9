"""Fine-tune the weights of the bundled 3D model: what a white box could do with the same labels."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from baps.adapters.volumes.adapter import CubeView, cube_around_prompts, shown_side
from baps.blackbox.volumes.bundled import BundledVolumeBlackBox
from baps.blackbox.volumes.bundled_network import network_input
from baps.evaluation.labelled_volumes import LabelledVolume
from baps.prompts.simulated_volumes import draw_volume_prompts
from baps.training.losses import image_losses

_ZOOM, _STEPS, _BATCH, _LEARNING_RATE = 0.45, 120, 2, 2e-4


def fine_tune(
    black_box: BundledVolumeBlackBox, volumes: Sequence[LabelledVolume], seed: int
) -> tuple[BundledVolumeBlackBox, float]:
    """Fine-tune a copy of the model on cubes around clicks, flipped at random.

    Args:
        black_box: the model, whose weights are read.
        volumes: labelled volumes.
        seed: seed of clicks and order.

    Returns:
        The tuned model, and the width of the cube that it was tuned for, mm.
    """
    network = copy.deepcopy(black_box._network).train()
    width = float(np.median([one.longest_side for one in volumes])) / _ZOOM
    optimiser = torch.optim.AdamW(network.parameters(), _LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _STEPS)
    random = np.random.default_rng([seed, 31])
    for _ in range(_STEPS):
        inputs, targets = [], []
        for row in random.integers(len(volumes), size=_BATCH):
            one = volumes[row]
            prompts = draw_volume_prompts(one.target, one.image.spacing, "click", 1, random)
            cube = cube_around_prompts(prompts, None, width, one.image.spacing, shown_side(black_box))
            view, empty = CubeView.of(one.image, prompts, cube), torch.zeros(1, cube.side, cube.side, cube.side)
            flips = [axis for axis in (-1, -2, -3) if random.random() < 0.5]
            shown = network_input(view.image[None], empty, view.positive[None], view.negative[None], view.region[None])
            inputs.append(shown.flip(flips))
            targets.append(torch.from_numpy(cube.extract(one.target, 0.0))[None].flip(flips))
        batch = torch.cat(inputs).contiguous(memory_format=torch.channels_last_3d)
        probability = F.sigmoid(network(batch)[:, 0])
        loss = image_losses(probability.flatten(2), torch.cat(targets).flatten(2)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return BundledVolumeBlackBox(network, black_box.capabilities.weights_sha256), width
