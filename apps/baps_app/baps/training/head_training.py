"""Train output-side heads by backpropagation, on answers of the black box that were kept; this queries nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from baps.adapters.output_head import GRID, OutputHead, head_features, to_logits
from baps.adapters.zoom import crop_for_prompt, paste_crops
from baps.imaging.metrics import dice
from baps.training.answers import Answers
from baps.training.batches import Batch, Batches
from baps.training.losses import image_losses

_BATCH = 8
_LEARNING_RATE = 5e-3
_WEIGHT_DECAY = 0.1
_PART = 32
_INTENSITY_STD = 0.1


@dataclass(frozen=True)
class HeadData:
    """Answers, and what a head sees of them, which is computed when it is needed and then kept.

    Attributes:
        batches: the slices, and the zoom.
        answers: N answers of the black box.
        seed: seed of the variations of intensity.
    """

    batches: Batches
    answers: Answers
    seed: int

    @cached_property
    def features(self) -> torch.Tensor:
        """The features of the head, (N, FEATURES, GRID, GRID), half precision.

        Returns:
            The features.
        """
        return self._features(lambda images: images)

    @cached_property
    def varied(self) -> torch.Tensor:
        """The features of images of slightly varied brightness and contrast, which heads are trained on.

        Returns:
            The features.
        """
        random = np.random.default_rng([self.seed, 32452843])
        return self._features(lambda images: _vary_intensity(images, random))

    @cached_property
    def target(self) -> torch.Tensor:
        """The masks at the grid, (N, 1, GRID, GRID), 0 to 1.

        Returns:
            The masks.
        """
        return torch.cat([F.adaptive_avg_pool2d(batch.target[:, None], GRID) for batch, _ in self._parts()])

    def _features(self, vary: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        parts = [head_features(vary(batch.images), answers, batch.prompts).half() for batch, answers in self._parts()]
        return torch.cat(parts)

    def _parts(self) -> Iterator[tuple[Batch, torch.Tensor]]:
        """Iterate over batches of the crops and their answers, (B, R, R)."""
        for start in range(0, len(self.answers.rows), _PART):
            rows = slice(start, start + _PART)
            probability = torch.from_numpy(self.answers.probability[rows]).float() / 255
            yield self.batches.build(self.answers.rows[rows], self.answers.prompts[rows]), probability


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

    def loss(sampled: list[int], random: np.random.Generator) -> torch.Tensor:
        inputs, targets = data.varied[sampled].float(), data.target[sampled]
        if augmented:
            inputs, targets = _augment_orientation(inputs, targets, random)
        return image_losses((3 * inputs[:, :1] + head(inputs))[:, 0].sigmoid(), targets[:, 0]).mean()

    fit_head(head, numbers, _BATCH, steps, seed, loss)
    return head


def fit_head(
    head: nn.Module,
    numbers: NDArray[np.int64],
    batch_size: int,
    steps: int,
    seed: int,
    loss: Callable[[list[int], np.random.Generator], torch.Tensor],
) -> None:
    """Fit a head in place by AdamW with one cycle of learning rates, and switch it to evaluation.

    Args:
        head: the head.
        numbers: numbers of the answers to train on, (N,).
        batch_size: number of answers per step, if there are that many.
        steps: number of steps.
        seed: seed of the order.
        loss: returns the loss of a batch, given the numbers of its answers and a random generator.
    """
    optimiser = torch.optim.AdamW(head.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _LEARNING_RATE, total_steps=steps)
    random = np.random.default_rng([seed, 1299709])
    order: list[int] = []
    size = min(batch_size, len(numbers))
    for _ in range(steps):
        while len(order) < size:
            order += random.permutation(numbers).tolist()
        sampled, order = order[:size], order[size:]
        batch_loss = loss(sampled, random)
        optimiser.zero_grad()
        batch_loss.backward()
        optimiser.step()
        schedule.step()
    head.eval()


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
    answers, scores = data.answers, []
    numbers = np.arange(len(answers.rows)) if chosen is None else np.flatnonzero(chosen)
    for start in range(0, len(numbers), _PART):
        part = numbers[start : start + _PART]
        probability = torch.from_numpy(answers.probability[part]).float() / 255
        if head:
            correction = F.interpolate(head(data.features[part].float()), probability.shape[1:], mode="bilinear")
            probability = (to_logits(probability) + correction[:, 0]).sigmoid()
        for n, one in zip(part, probability, strict=True):
            target = data.batches.slices[answers.rows[n]].target
            crop = crop_for_prompt(answers.prompts[n], len(target), data.batches.zoom)
            scores.append(dice(paste_crops(one[None], [crop], len(target))[0].numpy() > 0.5, target))
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
