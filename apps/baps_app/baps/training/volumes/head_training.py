"""Train the heads of volumes by backpropagation, on answers that were kept; this asks the black box nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from baps.adapters.volumes.features import GRID
from baps.adapters.volumes.head import VolumeHead
from baps.training.head_training import fit_head
from baps.training.losses import image_losses
from baps.training.volumes.answers import CubeAnswer, dice_in_volume

_BATCH = 4
_INTENSITY_STD = 0.1


class VolumeHeadData:
    """Answers, and what a head sees of them, which is computed when it is needed and then kept.

    Args:
        answers: N answers of the black box.
        seed: seed of the variations of intensity.
    """

    def __init__(self, answers: Sequence[CubeAnswer], seed: int) -> None:
        self.answers, self._seed = answers, seed

    @cached_property
    def features(self) -> torch.Tensor:
        """The features of the head, (N, VOLUME_FEATURES, G, G, G), half precision.

        Returns:
            The features.
        """
        return torch.cat([one.view().features(one.tensor()).half() for one in self.answers])

    @cached_property
    def varied(self) -> torch.Tensor:
        """The features of cubes of slightly varied brightness and contrast, which heads are trained on.

        Returns:
            The features, of the same shape.
        """
        random, rows = np.random.default_rng([self._seed, 32452843]), []
        for one in self.answers:
            contrast, brightness = random.normal(size=2) * _INTENSITY_STD
            view = one.view()
            image = (view.image * (1 + contrast) + brightness / 2).clamp(0, 1)
            rows.append(view.features(one.tensor(), image).half())
        return torch.cat(rows)

    @cached_property
    def target(self) -> torch.Tensor:
        """The masks at the grid, (N, G, G, G), 0 to 1.

        Returns:
            The masks.
        """
        return torch.stack([F.adaptive_avg_pool3d(one.target()[None], GRID)[0] for one in self.answers])

    @cached_property
    def known(self) -> torch.Tensor:
        """Where the masks are known at the grid, (N, G, G, G), 0 to 1.

        Returns:
            The share of each part of the grid that is known.
        """
        rows = [F.adaptive_avg_pool1d(one.known()[0], GRID)[None] for one in self.answers]
        return torch.stack(rows).expand(-1, GRID, GRID, GRID)

    def score(self, head: VolumeHead | None = None, chosen: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """Compute the Dice of answers in the volume, as they are or as a head corrects them.

        Args:
            head: corrects the answers, or None.
            chosen: the answers to score, (N,), or None for all.

        Returns:
            Dice, 0 to 1, of each chosen answer.
        """
        scores = []
        for number in range(len(self.answers)) if chosen is None else np.flatnonzero(chosen).tolist():
            answer = self.answers[number]
            if head is None and answer.whole_dice is not None:
                scores.append(answer.whole_dice)
                continue
            probability = answer.tensor()
            if head is not None:
                probability = head.refine(self.features[number : number + 1].float(), probability[None])[0]
            scores.append(dice_in_volume(answer, probability))
        return np.array(scores)


def train_volume_head(data: VolumeHeadData, chosen: NDArray[np.bool_], steps: int, seed: int) -> VolumeHead:
    """Train a head by soft Dice and cross-entropy, with AdamW and one cycle of learning rates.

    Cubes are flipped and their axes exchanged, because no feature has a direction.

    Args:
        data: the answers.
        chosen: the answers to train on, (N,).
        steps: number of steps.
        seed: seed of the weights and of the order.

    Returns:
        The head.
    """
    numbers, head = np.flatnonzero(chosen), VolumeHead(seed)

    def loss(sampled: list[int], random: np.random.Generator) -> torch.Tensor:
        axes, flips = random.permutation(3), [axis for axis in (-1, -2, -3) if random.random() < 0.5]
        inputs = data.varied[sampled].float().permute(0, 1, *(2 + axes).tolist()).flip(flips)
        targets, known = (
            one[sampled].permute(0, *(1 + axes).tolist()).flip(flips) for one in (data.target, data.known)
        )
        probability = (3 * inputs[:, 0] + head(inputs)[:, 0]).sigmoid() * known
        return image_losses(probability.flatten(2), (targets * known).flatten(2)).mean()

    fit_head(head, numbers, _BATCH, steps, seed, loss)
    return head
