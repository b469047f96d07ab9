"""Tune the prompt and an output head together, in the manner of CraFT.

CraFT (Wang et al., *Connecting the Dots: Collaborative Fine-tuning for Black-Box Vision-Language Models*, ICML 2024)
tunes a black-box classifier: CMA-ES searches a low-dimensional prompt, a network refines the predictions in residual
style, the two take turns, and a consistency loss keeps the predictions and the refined ones close to each other.

From the paper: the turns, the initial residual network that changes nothing, the consistency loss (Kullback-Leibler, in
each turn towards the other module's output) and its weight, Adam with its learning rate for the network, and the last
state instead of the best. What differs: the prompt is visual, our 12 coefficients, instead of 512 projected dimensions
of a text prompt; the network is our output head; and a loss is computed on 8 slices instead of the whole training set,
with 10 candidates instead of 40, because CraFT's 8,000 evaluations of a training set are far more images than there are
here. The network is trained on all answers of the search's mean prompts that were kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F
from typing_extensions import override

from baps.adapters.adapter import Adapter
from baps.adapters.output_head import GRID, OutputHead, head_features
from baps.blackbox import BlackBox
from baps.training.batches import Batch, Batches
from baps.training.losses import image_losses
from baps.training.settings import AdaptationSettings
from baps.training.steps import GetOrQuery, query_black_box
from baps.training.training import train_visual_prompt
from benchmarks.adaptation.constant_prompt import constant_prompt
from benchmarks.adaptation.steppers import CmaEsStepper

if TYPE_CHECKING:
    from benchmarks.adaptation.arms import Arena, Outcome

CONSISTENCY = 0.1
"""Weight of the consistency loss."""
_LEARNING_RATE = 1e-3
_HEAD_STEPS = 10
"""Steps of the head in each of its turns."""
_HEAD_BATCH = 8


def craft_like(arena: Arena) -> Outcome:
    """A constant visual prompt by CMA-ES and an output head by backpropagation, trained in turns as in CraFT."""
    settings = AdaptationSettings(max_images=arena.max_images, seed=arena.seed, correction_ratio=0)
    visual_prompt, stepper = constant_prompt(), CraftStepper(arena.seed)
    train_visual_prompt(
        arena.black_box, visual_prompt, Batches(arena.labelled, visual_prompt.encoder), settings, arena.max_images,
        callback=lambda images, adapter: arena.watch(images, replace(adapter, head=stepper.head)), stepper=stepper,
    )  # fmt: skip
    return arena.examiner, Adapter(visual_prompt, stepper.head)


class CraftStepper(CmaEsStepper):
    """Make one generation of CMA-ES, then train the head on the kept answers of the mean prompts.

    Args:
        seed: seed of the search, of the head and of its training.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.queries_per_slice = self.population + 1
        self.head = OutputHead(seed).eval()
        self._optimiser = torch.optim.Adam(self.head.parameters(), lr=_LEARNING_RATE)
        self._random = np.random.default_rng([seed, 49979687])
        self._features: list[torch.Tensor] = []
        self._targets: list[torch.Tensor] = []

    @override
    def step(self, black_box: BlackBox, batch: Batch, generator: torch.Generator, get_or_query: GetOrQuery) -> None:
        super().step(black_box, batch, generator, get_or_query)
        images = self.visual_prompt.transform_images(batch.images, batch.features, batch.prompts)
        answers = query_black_box(black_box, images, batch.prompts, batch.sizes)
        self._features += head_features(batch.images, answers, batch.prompts).half()
        self._targets += F.adaptive_avg_pool2d(batch.target, GRID)
        self._train_head()

    @override
    @torch.no_grad()
    def answer_losses(self, answers: torch.Tensor, batch: Batch) -> torch.Tensor:
        count = len(answers) // len(batch.target)
        features = head_features(batch.images.repeat(count, 1, 1, 1), answers, batch.prompts * count)
        odds, refined = 3 * features[:, 0], 3 * features[:, 0] + self.head(features)[:, 0]
        return super().answer_losses(answers, batch) + CONSISTENCY * divergence(refined, odds)

    def _train_head(self) -> None:
        """Train the head for one turn, with random flips, since no feature has a direction."""
        self.head.train()
        for _ in range(_HEAD_STEPS):
            rows = self._random.integers(len(self._features), size=_HEAD_BATCH)
            features = torch.stack([self._features[row] for row in rows]).float()
            target = torch.stack([self._targets[row] for row in rows])
            axes = [axis for axis in (-1, -2) if self._random.random() < 0.5]
            features, target = features.flip(axes), target.flip(axes)
            odds = 3 * features[:, 0]
            refined = odds + self.head(features)[:, 0]
            loss = (image_losses(refined.sigmoid(), target) + CONSISTENCY * divergence(odds, refined)).mean()
            self._optimiser.zero_grad()
            loss.backward()
            self._optimiser.step()
        self.head.eval()


def divergence(target: torch.Tensor, odds: torch.Tensor) -> torch.Tensor:
    """Compute the Kullback-Leibler divergence of each image's probabilities from a target, mean over pixels.

    Args:
        target: log odds of the target, (B, H, W).
        odds: log odds that are compared to it, (B, H, W).

    Returns:
        One divergence per image, (B,).
    """
    probability = target.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(target, probability, reduction="none")
    cross_entropy = F.binary_cross_entropy_with_logits(odds, probability, reduction="none")
    return (cross_entropy - entropy).mean((1, 2))
