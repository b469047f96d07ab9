"""Run SPSA-GC as the reference code of the paper does (BAPS, Paranjape et al., MICCAI 2024).

What follows the reference code, and not the repaired variant of the arms ``spsa_gc_fixed`` and ``spsa_gc_published``:
soft Dice as the only loss (its default configuration), truncation to whole grey levels, a decoder whose weights are all
zero at first (an option whose published value is not known), clicks drawn uniformly in the object, sampling with
replacement, augmentation (flip, rotation, saturation, brightness), and the checkpoint with the lowest loss on
validation patients, which is computed every 50 steps with new clicks.

What differs from the paper: the black box is the one of the benchmark, not SAM ViT-B. The features are those of
``load_encoder``, because CLIP's weights are not at hand. The random Fourier matrix is seeded and kept. The untouched
model is among the checkpoints, and the last step is a checkpoint. The loss on training slices, which the reference code
logs every 5 steps at a higher cost than the training itself, is not computed, because nothing depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import functional as vision
from typing_extensions import override

from baps.adapters.adapter import Adapter, identity_adapter, segment_adapted
from baps.adapters.visual_prompt import ConcatVisualPrompt, load_encoder
from baps.blackbox import BlackBox
from baps.evaluation.slices import AnySlice, LabelledSlice, evenly_spaced, shown_sizes
from baps.evaluation.splits import split_patients
from baps.prompts import Prompt
from baps.training.batches import Batch, Batches
from baps.training.losses import batch_dice_loss
from baps.training.settings import AdaptationSettings
from baps.training.steps import SpsaGcStepper
from baps.training.training import train_visual_prompt

if TYPE_CHECKING:
    from benchmarks.adaptation.arms import Arena, Outcome

_PUBLISHED_STEPS = 2000
_CHECKPOINT_STEPS = 50
_VALIDATION_DIVISOR = 20
"""Each evaluation of the validation patients takes at most one in this many of the images."""

_ROTATION = 10
"""Degrees."""
_SATURATION = 2.0
_BRIGHTNESS = 2.0
_QUERY_BATCH = 16


def spsa_gc_reference(arena: Arena) -> Outcome:
    """SPSA-GC as the reference code runs it, with validation included in the number of images."""
    validation = _validation_slices(arena)
    images_per_step = SpsaGcStepper().queries_per_slice * SpsaGcStepper.batch_size
    steps = arena.max_images // images_per_step
    while images_per_step * steps + len(validation) * (1 + _checkpoints(steps)) > arena.max_images:
        steps -= 1
    return _train(arena, validation, steps)


def spsa_gc_reference_80000(arena: Arena) -> Outcome:
    """The same with the published 2,000 steps, 80,000 images; those of validation come on top."""
    return _train(arena, _validation_slices(arena), _PUBLISHED_STEPS)


class TruncatingVisualPrompt(ConcatVisualPrompt):
    """The published decoder, which truncates to whole grey levels, and whose weights are all zero at first.

    Untrained it adds zero to the normalised image, and truncation may darken a pixel by one grey level.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(load_encoder(), seed=seed, condition="click")
        for weight in self.parameters():
            torch.nn.init.zeros_(weight)

    @override
    def apply_code(self, images: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        return self.apply_unrounded(images, code).clamp(0, 255).floor()


class ReferenceBatches(Batches):
    """Sample slices with replacement, augment them, and click uniformly in the object."""

    @override
    def draw(self, rows: Sequence[int], kind: str, correction_ratio: float, random: np.random.Generator) -> Batch:
        slices = [augment(self.slices[row], random) for row in rows]
        clicks = [draw_uniform_click(piece.target, random) for piece in slices]
        return Batches(slices, self._encoder).build(range(len(slices)), clicks)

    @override
    def sample_rows(self, count: int, random: np.random.Generator) -> list[int]:
        rows: list[int] = random.integers(len(self.slices), size=count).tolist()
        return rows


def augment(piece: AnySlice, random: np.random.Generator) -> LabelledSlice:
    """Flip, rotate, and change saturation and brightness, each with the probability of the reference code.

    Only the part of the image that shows the slice is changed. A rotation that moves the object out of it is skipped.
    """
    ((height, width),) = shown_sizes([piece])
    image = torch.from_numpy(piece.image[:height, :width].copy()).permute(2, 0, 1)
    target = torch.from_numpy(piece.target[:height, :width].copy())[None]
    if random.random() < 0.5:
        image, target = vision.hflip(image), vision.hflip(target)
    if random.random() < 0.5:
        degrees = float(random.integers(1, _ROTATION + 1))
        rotated = vision.rotate(target.to(torch.uint8), degrees) > 0
        if rotated.any():
            image, target = vision.rotate(image, degrees), rotated
    if random.random() < 0.2:
        image = vision.adjust_saturation(image, _SATURATION)
    if random.random() < 0.5:
        image = vision.adjust_brightness(image, _BRIGHTNESS * max(0.5, random.random()))
    pixels, mask = np.zeros_like(piece.image), np.zeros_like(piece.target)
    pixels[:height, :width], mask[:height, :width] = image.permute(1, 2, 0).numpy(), target[0].numpy()
    return LabelledSlice(piece.patient, pixels, mask, piece.window, piece.size)


def draw_uniform_click(target: NDArray[np.bool_], random: np.random.Generator) -> Prompt:
    """Draw one click from all pixels of a mask (H, W) with equal probability."""
    y, x = np.argwhere(target)[random.integers(target.sum())]
    return Prompt(positive=((float(x), float(y)),))


def validation_loss(
    black_box: BlackBox, adapter: Adapter | None, slices: Sequence[AnySlice], random: np.random.Generator
) -> float:
    """Compute the mean of the slices' Dice losses, each with a new uniform click."""
    losses = []
    for start in range(0, len(slices), _QUERY_BATCH):
        batch = slices[start : start + _QUERY_BATCH]
        clicks = [draw_uniform_click(piece.target, random) for piece in batch]
        images = np.stack([piece.image for piece in batch])
        answers = torch.from_numpy(segment_adapted(black_box, adapter, images, clicks, shown_sizes(batch)))
        targets = [torch.from_numpy(piece.target).float() for piece in batch]
        losses += [float(batch_dice_loss(*pair)) for pair in zip(answers, targets, strict=True)]
    return float(np.mean(losses))


def _validation_slices(arena: Arena) -> list[LabelledSlice]:
    """Return slices of a quarter of the patients; a single patient is trained and validated on."""
    groups = split_patients(arena.training).groups or (tuple(arena.training),)
    slices = [piece for patient in groups[0] for piece in arena.training[patient]]
    return list(evenly_spaced(slices, max(1, arena.max_images // _VALIDATION_DIVISOR)))


def _checkpoints(steps: int) -> int:
    """Return the number of checkpoints after the start: every 50 steps, and at the end."""
    return -(-steps // _CHECKPOINT_STEPS)


def _train(arena: Arena, validation: Sequence[LabelledSlice], steps: int) -> Outcome:
    held_out = {piece.patient for piece in validation}
    slices = [piece for piece in arena.labelled if piece.patient not in held_out] or arena.labelled
    stepper = SpsaGcStepper(visible=False, loss=batch_dice_loss)
    images = stepper.queries_per_slice * min(stepper.batch_size, len(slices)) * steps
    settings = AdaptationSettings(max_images=images, seed=arena.seed)
    visual_prompt = TruncatingVisualPrompt(arena.seed)
    random = np.random.default_rng([arena.seed, 15485863])
    best: Adapter | None = None
    best_loss = validation_loss(arena.black_box, best, validation, random)
    arena.watch(arena.black_box.images_queried, identity_adapter())

    def keep_if_better(step: int, steps: int, images: int, dice: float | None) -> None:
        nonlocal best, best_loss
        if step % _CHECKPOINT_STEPS and step < steps:
            return
        loss = validation_loss(arena.black_box, Adapter(visual_prompt), validation, random)
        if loss < best_loss:
            checkpoint = TruncatingVisualPrompt(arena.seed)
            checkpoint.load_state_dict(visual_prompt.state_dict())
            best, best_loss = Adapter(checkpoint), loss
            arena.notes["checkpoint"] = step
        arena.watch(arena.black_box.images_queried, best or identity_adapter())

    arena.notes["checkpoint"] = 0
    train_visual_prompt(
        arena.black_box, visual_prompt, ReferenceBatches(slices, load_encoder()), settings, images,
        curve_points=0, progress=keep_if_better, stepper=stepper,
    )  # fmt: skip
    arena.notes["steps"] = steps
    arena.notes["training_images"] = images
    arena.notes["validation_images"] = arena.black_box.images_queried - images
    return arena.examiner, best
