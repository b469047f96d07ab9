"""Load labelled slices as tensors, a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from baps.adapters.visual_prompt import Encoder, to_tensor
from baps.adapters.zoom import crop_for_prompt, crop_images, prompt_to_crop, size_in_crop
from baps.blackbox import Size
from baps.evaluation.slices import AnySlice, shown_sizes
from baps.prompts import Prompt
from baps.prompts.simulated import draw_corrected_prompt, draw_prompt


@dataclass(frozen=True)
class Batch:
    """What the black box is to be shown, before the visual prompt changes it.

    Attributes:
        images: crops of the slices, (B, 3, S, S) in [0, 255].
        features: features of the whole slices, (B, F).
        target: masks in the frame of the crops, (B, S, S) float.
        prompts: one per image, (X, Y) in pixels of the crop.
        sizes: size of the part of each crop that shows the slice, (H, W) in pixels.
    """

    images: torch.Tensor
    features: torch.Tensor
    target: torch.Tensor
    prompts: list[Prompt]
    sizes: list[Size]


class Batches:
    """Build batches of slices with their frozen features; the features of a slice are computed once.

    Args:
        slices: N labelled slices.
        encoder: computes the features.
        zoom: share of a slice's side that the black box is shown, see ``Adapter``.
    """

    def __init__(self, slices: Sequence[AnySlice], encoder: Encoder, zoom: float = 1.0) -> None:
        self.slices, self._encoder, self.zoom = slices, encoder, zoom
        self._features: dict[int, torch.Tensor] = {}

    def with_zoom(self, zoom: float) -> Batches:
        """Return the same slices with another zoom.

        Args:
            zoom: share of a slice's side that the black box is shown.

        Returns:
            Batches that share their features with these.
        """
        other = Batches(self.slices, self._encoder, zoom)
        other._features = self._features
        return other

    def select(self, rows: Sequence[int]) -> Batches:
        """Select some of the slices.

        Args:
            rows: their indices.

        Returns:
            Batches that share their features with these.
        """
        other = Batches([self.slices[row] for row in rows], self._encoder, self.zoom)
        other._features = self._features
        return other

    def draw(self, rows: Sequence[int], kind: str, correction_ratio: float, random: np.random.Generator) -> Batch:
        """Build a batch with new random prompts.

        Args:
            rows: indices of the slices, B.
            kind: ``click`` or ``box``.
            correction_ratio: share of the prompts that have corrective clicks, 0 to 1.
            random: the source of randomness.

        Returns:
            The batch of B slices.
        """
        draw_functions = [draw_corrected_prompt if random.random() < correction_ratio else draw_prompt for _ in rows]
        return self.build(
            rows,
            [
                draw_function(self.slices[row].target, kind, random)
                for draw_function, row in zip(draw_functions, rows, strict=True)
            ],
        )

    def build(self, rows: Sequence[int], prompts: Sequence[Prompt]) -> Batch:
        """Build a batch with given prompts.

        Args:
            rows: indices of the slices, B.
            prompts: one per slice, (X, Y) in its pixels.

        Returns:
            The batch of B slices.
        """
        images = to_tensor(np.stack([self.slices[row].image for row in rows]))
        keys = [id(self.slices[row]) for row in rows]  # The slices live as long as these batches.
        for key, image in zip(keys, images, strict=True):
            if key not in self._features:
                self._features[key] = self._encoder.features(image[None])
        target = torch.from_numpy(np.stack([self.slices[row].target for row in rows])).float()
        side = images.shape[-1]
        crops = [crop_for_prompt(prompt, side, self.zoom) for prompt in prompts]
        sizes = shown_sizes([self.slices[row] for row in rows])
        return Batch(
            crop_images(images, crops),
            torch.cat([self._features[key] for key in keys]),
            crop_images(target[:, None], crops)[:, 0],
            [prompt_to_crop(prompt, crop, side) for prompt, crop in zip(prompts, crops, strict=True)],
            [size_in_crop(size, crop, side) for size, crop in zip(sizes, crops, strict=True)],
        )

    def sample_rows(self, count: int, random: np.random.Generator) -> list[int]:
        """Sample indices of slices; every slice is used once before any is used again.

        Args:
            count: number of indices.
            random: the source of randomness.

        Returns:
            ``count`` indices.
        """
        rows: list[int] = []
        while len(rows) < count:
            rows += random.permutation(len(self.slices)).tolist()
        return rows[:count]
