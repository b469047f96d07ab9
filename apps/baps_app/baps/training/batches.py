"""Labelled slices as tensors, a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from baps.adapters.visual_prompt import Encoder, to_tensor
from baps.adapters.zoom import crop_for_prompt, crop_images, prompt_to_crop
from baps.evaluation.slices import AnySlice
from baps.prompts import Prompt
from baps.prompts.simulated import draw_corrected_prompt, draw_prompt


@dataclass(frozen=True)
class Batch:
    """What the black box is to be shown, before the visual prompt changes it.

    Attributes:
        images: (B, 3, S, S) in [0, 255].
        features: of the whole images, (B, F).
        truth: (B, S, S) float.
        prompts: one an image, in its pixels.
    """

    images: torch.Tensor
    features: torch.Tensor
    truth: torch.Tensor
    prompts: list[Prompt]


class Batches:
    """Batches of slices, with their frozen features, which are computed once for those that are used.

    Args:
        slices: N of them.
        encoder: gives the features.
        zoom: see ``Adapter``.
    """

    def __init__(self, slices: Sequence[AnySlice], encoder: Encoder, zoom: float = 1.0) -> None:
        self.slices, self._encoder, self.zoom = slices, encoder, zoom
        self._features: dict[int, torch.Tensor] = {}

    def draw(self, rows: Sequence[int], kind: str, corrected: float, random: np.random.Generator) -> Batch:
        """A batch with new prompts of a kind, a share of them ``corrected``."""
        ways = [draw_corrected_prompt if random.random() < corrected else draw_prompt for _ in rows]
        return self.of(rows, [way(self.slices[row].truth, kind, random) for way, row in zip(ways, rows, strict=True)])

    def of(self, rows: Sequence[int], prompts: Sequence[Prompt]) -> Batch:
        """A batch with given prompts, in pixels of the slices."""
        images = to_tensor(np.stack([self.slices[row].image for row in rows]))
        for row, image in zip(rows, images, strict=True):
            if row not in self._features:
                self._features[row] = self._encoder.features(image[None])
        truth = torch.from_numpy(np.stack([self.slices[row].truth for row in rows])).float()
        side = images.shape[-1]
        crops = [crop_for_prompt(prompt, side, self.zoom) for prompt in prompts]
        return Batch(
            crop_images(images, crops),
            torch.cat([self._features[row] for row in rows]),
            crop_images(truth[:, None], crops)[:, 0],
            [prompt_to_crop(prompt, crop, side) for prompt, crop in zip(prompts, crops, strict=True)],
        )

    def order(self, count: int, random: np.random.Generator) -> list[int]:
        """So many rows; every slice comes once before any comes again."""
        rows: list[int] = []
        while len(rows) < count:
            rows += random.permutation(len(self.slices)).tolist()
        return rows[:count]
