"""Labelled slices as tensors, a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..blackbox import Prompt
from ..simulated_prompts import draw_prompt
from ..visual_prompt import Encoder, to_tensor
from .slices import AnySlice


@dataclass(frozen=True)
class Batch:
    """Images (B, 3, S, S) in [0, 255], features (B, F), truth (B, S, S) float, and a prompt an image."""

    images: torch.Tensor
    features: torch.Tensor
    truth: torch.Tensor
    prompts: list[Prompt]


class Batches:
    """Batches of slices, with their frozen features, which are computed once for those that are used.

    Args:
        slices: N of them.
        encoder: gives the features.
    """

    def __init__(self, slices: Sequence[AnySlice], encoder: Encoder) -> None:
        self.slices, self._encoder = slices, encoder
        self._features: dict[int, torch.Tensor] = {}

    def draw(self, rows: Sequence[int], kind: str, random: np.random.Generator) -> Batch:
        """A batch with new prompts of a kind."""
        return self.of(rows, [draw_prompt(self.slices[row].truth, kind, random) for row in rows])

    def of(self, rows: Sequence[int], prompts: Sequence[Prompt]) -> Batch:
        """A batch with given prompts."""
        images = to_tensor(np.stack([self.slices[row].image for row in rows]))
        for row, image in zip(rows, images, strict=True):
            if row not in self._features:
                self._features[row] = self._encoder.features(image[None])
        truth = torch.from_numpy(np.stack([self.slices[row].truth for row in rows])).float()
        return Batch(images, torch.cat([self._features[row] for row in rows]), truth, list(prompts))

    def order(self, count: int, random: np.random.Generator) -> list[int]:
        """So many rows; every slice comes once before any comes again."""
        rows: list[int] = []
        while len(rows) < count:
            rows += random.permutation(len(self.slices)).tolist()
        return rows[:count]
