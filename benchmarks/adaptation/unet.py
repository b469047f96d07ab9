"""Train a U-Net from scratch on the same labels, with the clicks as input channels. It queries no black box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from monai.networks.nets import UNet
from numpy.typing import NDArray
from torch.nn import functional as F

from baps.adapters.visual_prompt import to_tensor
from baps.blackbox import BlackBox, Capabilities
from baps.evaluation.scoring import score_slices
from baps.evaluation.slices import AnySlice, evenly_spaced
from baps.evaluation.splits import split_patients
from baps.prompts import Point, Prompt
from baps.prompts.simulated import draw_corrected_prompt, draw_prompt
from baps.training.losses import image_losses

if TYPE_CHECKING:
    from benchmarks.adaptation.arms import Arena, Outcome

_SIDE = 128
"""Width and height of the images that the network sees, pixels."""
_CHANNELS = (16, 32, 64, 128, 256)
_CLICK_SIGMA = 3.0
"""Standard deviation of the Gaussian at each click, pixels of the network."""

_STEPS = 600
_BATCH = 8
_LEARNING_RATE = 2e-3
_CORRECTED = 0.5
"""Share of the training prompts that have corrective clicks."""

_CHECK_STEPS = 50
_PATIENCE = 5
"""Number of checks without a better one after which the training stops."""
_VALIDATION_SLICES = 64

_ROTATION = 15.0
"""Degrees."""
_SCALE = 0.15
_SHIFT = 0.1
"""Share of half the image's side."""
_INTENSITY_STD = 0.1


def unet_from_scratch(arena: Arena) -> Outcome:
    """A U-Net that is trained on the labelled slices alone."""
    side = arena.black_box.capabilities.input_size
    validation_patients = set(next(iter(split_patients(arena.training).groups), ()))
    slices = [piece for piece in arena.labelled if piece.patient not in validation_patients]
    validation = [piece for piece in arena.labelled if piece.patient in validation_patients]
    checked = evenly_spaced(validation, _VALIDATION_SLICES)
    network = train_unet(slices, checked, side, arena.seed, arena.notes, _STEPS)
    return UNetBlackBox(network, side), None


class UNetBlackBox(BlackBox):
    """Answer clicks with a U-Net.

    Args:
        network: maps what ``network_inputs`` returns to log odds, (B, 1, T, T).
        side: width and height of the images that it was trained on, pixels.
    """

    def __init__(self, network: torch.nn.Module, side: int) -> None:
        super().__init__()
        self.network, self.side = network, side

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            name="unet",
            weights_sha256="",
            clicks=True,
            negative_clicks=True,
            boxes=False,
            encodings=False,
            batch_size=16,
            input_size=self.side,
        )

    @torch.no_grad()
    def _segment(self, images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        odds = self.network(network_inputs(to_tensor(images), prompts))
        odds = F.interpolate(odds, images.shape[1:3], mode="bilinear", align_corners=False)
        probability: NDArray[np.float32] = odds[:, 0].sigmoid().numpy()
        return probability


def network_inputs(images: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
    """Compute what the network sees: the image, the positive and the negative clicks.

    Args:
        images: square images, (B, 3, S, S) in [0, 255].
        prompts: one per image, (X, Y) in its pixels.

    Returns:
        Five channels, (B, 5, T, T), with T = 128.
    """
    resized = F.interpolate(images, (_SIDE, _SIDE), mode="bilinear", align_corners=False, antialias=True)
    scale = _SIDE / images.shape[-1]
    clicks = [torch.stack([_gaussians(p.positive, scale), _gaussians(p.negative, scale)]) for p in prompts]
    return torch.cat([resized / 127.5 - 1, torch.stack(clicks)], 1)


def _gaussians(points: Sequence[Point], scale: float) -> torch.Tensor:
    """Draw a Gaussian of height 1 at each point, (T, T)."""
    pixels, drawn = torch.arange(_SIDE, dtype=torch.float32), torch.zeros(_SIDE, _SIDE)
    for x, y in points:
        across, down = pixels - ((x + 0.5) * scale - 0.5), pixels - ((y + 0.5) * scale - 0.5)
        squares = across.square() + down.square()[:, None]
        drawn = torch.maximum(drawn, torch.exp(-squares / (2 * _CLICK_SIGMA**2)))
    return drawn


def train_unet(
    slices: Sequence[AnySlice],
    validation: Sequence[AnySlice],
    side: int,
    seed: int,
    notes: dict[str, object],
    steps: int,
) -> torch.nn.Module:
    """Train a U-Net by soft Dice and cross-entropy, and keep the weights with the best Dice on the validation slices.

    Args:
        slices: slices to train on.
        validation: slices of other patients; without any, the last weights are kept.
        side: width and height of the slices, pixels.
        seed: seed of everything random.
        notes: gets ``steps`` and ``checkpoint``, the number of steps that were made, and of those of the kept weights.
        steps: maximum number of steps.

    Returns:
        The network.
    """
    random = np.random.default_rng([seed, 86028121])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = UNet(2, 5, 1, _CHANNELS, (2,) * (len(_CHANNELS) - 1), norm="batch")
    optimiser = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _LEARNING_RATE, total_steps=steps)
    best_dice, best_step, best = -1.0, 0, network.state_dict()
    for step in range(1, steps + 1):
        rows = random.integers(len(slices), size=_BATCH)
        inputs, target = _draw_batch([slices[row] for row in rows], random)
        network.train()
        loss = image_losses(network(inputs)[:, 0].sigmoid(), target).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        notes["steps"] = step
        if not validation or (step % _CHECK_STEPS and step < steps):
            continue
        dice = float(score_slices(UNetBlackBox(network.eval(), side), None, validation, "click", seed, 1).mean())
        if dice > best_dice:
            best_dice, best_step = dice, step
            best = {name: value.clone() for name, value in network.state_dict().items()}
        elif step - best_step >= _PATIENCE * _CHECK_STEPS:
            break
    if validation:
        network.load_state_dict(best)
    notes["checkpoint"] = best_step or steps
    return network.eval()


def _draw_batch(slices: Sequence[AnySlice], random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Augment slices and draw their prompts; return inputs and masks, (B, 5, T, T) and (B, T, T)."""
    images = to_tensor(np.stack([piece.image for piece in slices]))
    targets = torch.from_numpy(np.stack([piece.target for piece in slices])).float()[:, None]
    grid = F.affine_grid(_random_transforms(len(slices), random), list(images.shape), align_corners=False)
    moved = F.grid_sample(targets, grid, align_corners=False)
    prompts = []
    for row in range(len(slices)):
        if not (moved[row] > 0.5).any():  # The object was moved out of the image.
            grid[row] = F.affine_grid(torch.eye(2, 3)[None], [1, *images.shape[1:]], align_corners=False)[0]
            moved[row] = targets[row]
        draw = draw_corrected_prompt if random.random() < _CORRECTED else draw_prompt
        prompts.append(draw(moved[row, 0].numpy() > 0.5, "click", random))
    images = _vary_intensity(F.grid_sample(images, grid, align_corners=False), random)
    target = F.interpolate(moved, (_SIDE, _SIDE), mode="bilinear", align_corners=False, antialias=True)
    return network_inputs(images, prompts), target[:, 0].clamp(0, 1)


def _random_transforms(count: int, random: np.random.Generator) -> torch.Tensor:
    """Draw rotations, flips, scales and shifts, (count, 2, 3)."""
    angle = np.deg2rad(random.uniform(-_ROTATION, _ROTATION, count))
    scale = random.uniform(1 - _SCALE, 1 + _SCALE, count)
    flips = random.choice([-1.0, 1.0], (count, 2, 1))
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], 1).reshape(count, 2, 2)
    shift = random.uniform(-_SHIFT, _SHIFT, (count, 2, 1))
    return torch.from_numpy(np.concatenate([flips * scale[:, None, None] * turn, shift], 2)).float()


def _vary_intensity(images: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Vary brightness and contrast of images (B, 3, S, S)."""
    contrast, brightness = torch.from_numpy(random.normal(size=(2, len(images), 1, 1, 1))).float() * _INTENSITY_STD
    return (images * (1 + contrast) + 255 * brightness / 2).clamp(0, 255)
