"""Train output-side heads by backpropagation, on answers of the black box that were kept; this queries nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from baps.adapters.output_head import GRID, OutputHead, head_features, to_logits
from baps.adapters.zoom import crop_for_prompt, paste_crops
from baps.imaging.metrics import dice
from baps.training.answers import Answers
from baps.training.batches import Batches
from baps.training.losses import image_losses

_BATCH = 8
_LEARNING_RATE = 5e-3
_WEIGHT_DECAY = 0.1
_PART = 32
_INTENSITY_STD = 0.1


@dataclass(frozen=True)
class HeadData:
    """Answers as a head sees them, and the answers themselves.

    Attributes:
        batches: the slices, and the zoom.
        answers: N answers of the black box.
        features: features of the head, (N, FEATURES, GRID, GRID), half precision.
        varied: the same from images of slightly varied brightness and contrast, which heads are trained on.
        target: masks at the grid, (N, 1, GRID, GRID), 0 to 1.
    """

    batches: Batches
    answers: Answers
    features: torch.Tensor
    varied: torch.Tensor
    target: torch.Tensor

    def __add__(self, other: HeadData) -> HeadData:
        """Join the answers to two sets of prompts on the same slices."""
        return HeadData(
            self.batches,
            self.answers + other.answers,
            torch.cat([self.features, other.features]),
            torch.cat([self.varied, other.varied]),
            torch.cat([self.target, other.target]),
        )


def build_head_data(batches: Batches, answers: Answers, seed: int) -> HeadData:
    """Compute what heads are trained and judged on.

    Args:
        batches: the slices that were queried.
        answers: the black box's answers.
        seed: seed of the variations of intensity.

    Returns:
        The answers and their features.
    """
    random = np.random.default_rng([seed, 32452843])
    features, varied, target = [], [], []
    for start in range(0, len(answers.rows), _PART):
        rows = slice(start, start + _PART)
        batch = batches.build(answers.rows[rows], answers.prompts[rows])
        probability = torch.from_numpy(answers.probability[rows]).float() / 255
        features.append(head_features(batch.images, probability, batch.prompts).half())
        varied.append(head_features(_vary_intensity(batch.images, random), probability, batch.prompts).half())
        target.append(F.adaptive_avg_pool2d(batch.target[:, None], GRID))
    return HeadData(batches, answers, torch.cat(features), torch.cat(varied), torch.cat(target))


def train_head(data: HeadData, chosen: NDArray[np.bool_] | None, augmented: bool, steps: int, seed: int) -> OutputHead:
    """Train a head by soft Dice and cross-entropy, with AdamW and one cycle of learning rates.

    Args:
        data: the answers.
        chosen: the answers to train on, (N,), or None for all.
        augmented: whether orientations are augmented. From many patients a head may learn the orientation of organs;
            from few it must not.
        steps: number of steps.
        seed: seed of the weights and of the order.

    Returns:
        The head.
    """
    numbers = np.arange(len(data.answers.rows)) if chosen is None else np.flatnonzero(chosen)
    head = OutputHead(seed)
    optimiser = torch.optim.AdamW(head.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _LEARNING_RATE, total_steps=steps)
    random = np.random.default_rng([seed, 1299709])
    order: list[int] = []
    size = min(_BATCH, len(numbers))
    for _ in range(steps):
        while len(order) < size:
            order += random.permutation(numbers).tolist()
        sampled, order = order[:size], order[size:]
        inputs, targets = data.varied[sampled].float(), data.target[sampled]
        if augmented:
            inputs, targets = _augment_orientation(inputs, targets, random)
        loss = image_losses((3 * inputs[:, :1] + head(inputs))[:, 0].sigmoid(), targets[:, 0]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return head.eval()


@torch.no_grad()
def score_answers(
    data: HeadData, head: OutputHead | None = None, chosen: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Compute the Dice of answers on whole slices, as they are or as a head corrects them.

    Args:
        data: the answers.
        head: corrects the answers, or None.
        chosen: the answers to score, (N,), or None for all.

    Returns:
        Dice, 0 to 1, of each chosen answer.
    """
    scores = []
    size = data.answers.probability.shape[1:]
    for n in range(len(data.answers.rows)) if chosen is None else np.flatnonzero(chosen):
        piece, prompt = data.batches.slices[data.answers.rows[n]], data.answers.prompts[n]
        probability = torch.from_numpy(data.answers.probability[n : n + 1]).float() / 255
        if head:
            correction = head(data.features[n : n + 1].float())
            probability = (to_logits(probability) + F.interpolate(correction, size, mode="bilinear")[:, 0]).sigmoid()
        side = len(piece.target)
        crop = crop_for_prompt(prompt, side, data.batches.zoom)
        scores.append(dice(paste_crops(probability, [crop], side)[0].numpy() > 0.5, piece.target))
    return np.array(scores)


def _vary_intensity(images: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
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
