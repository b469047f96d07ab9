"""Train the output-side head by backpropagation, on answers of the black box to adapted images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from baps.adapters.output_head import GRID, OutputHead, head_features
from baps.adapters.visual_prompt import VisualPrompt
from baps.adapters.zoom import crop_for_prompt, paste_crops
from baps.blackbox import BlackBox
from baps.imaging.metrics import dice
from baps.prompts import Prompt
from baps.prompts.simulated import PROMPTS, draw_correction, draw_prompt
from baps.training.batches import Batch, Batches
from baps.training.losses import image_losses
from baps.training.query_log import QueryLog
from baps.training.steps import query_black_box

_BATCH = 8
_STEPS = 150
_TRIAL_STEPS = 60
_LEARNING_RATE = 5e-3
_WEIGHT_DECAY = 0.1
_QUERY_BATCH = 32
_OTHER_KIND_INTERVAL = 4
"""One first prompt in this many is of the other kind: a user who mostly clicks draws a box now and then."""

_MAX_CORRECTIONS = 4
_INTENSITY_STD = 0.1
_THRESHOLD = 127.5


@dataclass(frozen=True)
class Answers:
    """The black box's answers to crops of adapted slices, at the head's grid.

    Attributes:
        rows: index of each answer's slice, N.
        prompts: prompts that were used, (X, Y) in pixels of the slices.
        probability: (N, GRID, GRID) uint8; 255 is probability 1.
    """

    rows: list[int]
    prompts: list[Prompt]
    probability: NDArray[np.uint8]


def collect_answers(
    black_box: BlackBox,
    visual_prompt: VisualPrompt,
    batches: Batches,
    kind: str,
    images: int,
    seed: int,
    query_log: QueryLog,
    run: str,
) -> Answers:
    """Query the black box for the head's training data.

    First prompts take half of the images, prompts with one correction half of the rest, and so on.

    Args:
        black_box: the model.
        visual_prompt: the visual prompt that was trained for it.
        batches: the slices.
        kind: kind of most first prompts, ``click`` or ``box``.
        images: number of images to query.
        seed: seed of the prompts.
        query_log: logs the answers.
        run: name of this run in the log.

    Returns:
        The answers.
    """
    random = np.random.default_rng([seed, 104729])
    capabilities = black_box.capabilities
    kinds = [
        name for name, understood in zip(PROMPTS, (capabilities.clicks, capabilities.boxes), strict=True) if understood
    ]
    corrections = [images >> level for level in range(2, 2 + _MAX_CORRECTIONS)] if capabilities.clicks else []
    rows = batches.sample_rows(images - sum(corrections), random)
    prompts = []
    for number, row in enumerate(rows):
        other_kinds = [name for name in kinds if name != kind and number % _OTHER_KIND_INTERVAL == 0]
        prompts.append(draw_prompt(batches.slices[row].target, (other_kinds or [kind])[0], random))
    collected = Answers([], [], np.zeros((0, GRID, GRID), np.uint8))
    for count, max_corrections in enumerate([*corrections, 0], start=1):
        probability = _query(black_box, visual_prompt, batches, rows, prompts, query_log, {"run": run, "head": count})
        collected = Answers(
            collected.rows + rows, collected.prompts + prompts, np.concatenate([collected.probability, probability])
        )
        corrected_prompts = (
            (row, corrected)
            for row, prompt, answer in zip(rows, prompts, probability, strict=True)
            if (corrected := _add_correction(prompt, answer, batches.slices[row].target, batches.zoom, random))
        )
        sampled = list(islice(corrected_prompts, max_corrections))
        if not sampled:
            break
        rows, prompts = [row for row, _ in sampled], [prompt for _, prompt in sampled]
    return collected


def _add_correction(
    prompt: Prompt, probability: NDArray[np.uint8], target: NDArray[np.bool_], zoom: float, random: np.random.Generator
) -> Prompt | None:
    """Add a click where the answer is most wrong; return None if no correction is needed."""
    side = len(target)
    answer = F.interpolate(torch.from_numpy(probability)[None, None].float(), (side, side), mode="bilinear")[0]
    mask = paste_crops(answer, [crop_for_prompt(prompt, side, zoom)], side)[0].numpy() > _THRESHOLD
    return draw_correction(prompt, mask, target, random)


def _query(
    black_box: BlackBox,
    visual_prompt: VisualPrompt,
    batches: Batches,
    rows: Sequence[int],
    prompts: Sequence[Prompt],
    query_log: QueryLog,
    key: Mapping[str, int | str],
) -> NDArray[np.uint8]:
    """Query the black box, and average its answers to the grid, (N, GRID, GRID)."""
    parts = []
    for start in range(0, len(rows), _QUERY_BATCH):
        batch = batches.build(rows[start : start + _QUERY_BATCH], prompts[start : start + _QUERY_BATCH])

        def query(batch: Batch = batch) -> NDArray[np.uint8]:
            changed = visual_prompt.transform_images(batch.images, batch.features, batch.prompts)
            probability = query_black_box(black_box, changed, batch.prompts, batch.sizes)
            return (255 * _at_grid(probability)).round().to(torch.uint8).numpy()

        parts.append(query_log.get_or_query_masks({**key, "from": start}, query))
    return np.concatenate(parts)


def train_head(batches: Batches, answers: Answers, seed: int) -> OutputHead | None:
    """Train a head that improves the answers on unseen patients.

    From many patients it may learn the orientation of organs; from few it must not, so orientations are augmented.
    Training with augmentation, without it, and no head at all are compared on a third of the patients before the final
    training on all of them. With one patient there is no comparison, and orientations are augmented.

    Args:
        batches: the slices that were queried.
        answers: the black box's answers.
        seed: seed of the weights and of the order.

    Returns:
        The head, or None if no head improves the answers.
    """
    features, target = _training_tensors(batches, answers, seed)
    patient_of_row = np.array([batches.slices[row].patient for row in answers.rows])
    patients = np.random.default_rng([seed, 15485863]).permutation(np.unique(patient_of_row))
    augmented = True
    if len(patients) > 1:
        held_out = torch.from_numpy(np.isin(patient_of_row, patients[: max(1, len(patients) // 3)]))
        held_out_tensors = features[held_out], target[held_out]
        scores = {
            augment: _dice(_fit(features[~held_out], target[~held_out], seed, augment, _TRIAL_STEPS), *held_out_tensors)
            for augment in (True, False)
        }
        augmented = scores[True] >= scores[False]
        if scores[augmented] <= _dice(None, *held_out_tensors):
            return None
    return _fit(features, target, seed, augmented, _STEPS)


def _training_tensors(batches: Batches, answers: Answers, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute features (N, FEATURES, GRID, GRID) in half precision, and targets (N, 1, GRID, GRID)."""
    random = np.random.default_rng([seed, 32452843])
    features, target = [], []
    for start in range(0, len(answers.rows), _QUERY_BATCH):
        rows = slice(start, start + _QUERY_BATCH)
        batch = batches.build(answers.rows[rows], answers.prompts[rows])
        probability = torch.from_numpy(answers.probability[rows]).float() / 255
        features.append(head_features(_augment_intensity(batch.images, random), probability, batch.prompts).half())
        target.append(_at_grid(batch.target)[:, None])
    return torch.cat(features), torch.cat(target)


def _fit(features: torch.Tensor, target: torch.Tensor, seed: int, augmented: bool, steps: int) -> OutputHead:
    """Train by soft Dice and cross-entropy, with AdamW and one cycle of learning rates."""
    head = OutputHead(seed)
    optimiser = torch.optim.AdamW(head.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _LEARNING_RATE, total_steps=steps)
    random = np.random.default_rng([seed, 1299709])
    order: list[int] = []
    size = min(_BATCH, len(features))
    for _ in range(steps):
        while len(order) < size:
            order += random.permutation(len(features)).tolist()
        sampled, order = order[:size], order[size:]
        inputs, targets = features[sampled].float(), target[sampled]
        if augmented:
            inputs, targets = _augment_orientation(inputs, targets, random)
        loss = image_losses((3 * inputs[:, :1] + head(inputs))[:, 0].sigmoid(), targets[:, 0]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return head.eval()


@torch.no_grad()
def _dice(head: OutputHead | None, features: torch.Tensor, target: torch.Tensor) -> float:
    """Compute the mean Dice at the grid, of answers that a head corrected or of the answers themselves."""
    scores = []
    for inputs, targets in zip(features.split(_QUERY_BATCH), target.split(_QUERY_BATCH), strict=True):
        odds = 3 * inputs[:, :1].float()
        masks = (odds + head(inputs.float()) if head else odds) > 0
        scores += [dice(mask, target) for mask, target in zip(masks.numpy(), (targets > 0.5).numpy(), strict=True)]
    return float(np.mean(scores))


def _augment_intensity(images: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Vary brightness and contrast of images (B, 3, S, S) a little, as scanners do."""
    contrast, brightness = torch.from_numpy(random.normal(size=(2, len(images), 1, 1, 1))).float() * _INTENSITY_STD
    return (images * (1 + contrast) + 255 * brightness / 2).clamp(0, 255)


def _augment_orientation(
    features: torch.Tensor, target: torch.Tensor, random: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flip and transpose both alike, (B, C, GRID, GRID); no feature has a direction."""
    axes = [axis for axis in (-1, -2) if random.random() < 0.5]
    features, target = features.flip(axes), target.flip(axes)
    return (features.mT, target.mT) if random.random() < 0.5 else (features, target)


def _at_grid(images: torch.Tensor) -> torch.Tensor:
    """Average images (N, S, S) to the cells of the grid, (N, GRID, GRID)."""
    return F.adaptive_avg_pool2d(images[:, None], GRID)[:, 0]
