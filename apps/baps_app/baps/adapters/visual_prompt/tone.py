"""Define a visual prompt that depends on the clicked tissue: its window is relative to the grey level under the click.

The coefficients of the basis functions {1, I, I^2, local detail} are cubic polynomials of the clicked grey level. A
tone curve such as (I - c)^2, which sets the clicked tissue apart, is among them; twelve constants cannot express it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar

import torch
from torch import nn
from typing_extensions import override

from baps.adapters.visual_prompt.basis import FUNCTIONS, BasisChange
from baps.adapters.visual_prompt.encoder import Encoder
from baps.prompts import Prompt

_LEVELS = 64
"""Number of grey levels that are told apart. Clicks on tissue of one level share an encoding."""

_RADIUS = 32
"""The grey level is the mean of a square around the click, of twice this share of the image's width, plus 1 pixel."""

_DEGREE = 3


class ToneVisualPrompt(BasisChange):
    """Predict basis coefficients from the grey level under the first click, or in the middle of the box.

    Args:
        encoder: see ``VisualPrompt``; its features are not read.

    Attributes:
        kind: ``tone``.
        general_weights: see ``VisualPrompt``.
    """

    kind: ClassVar[str] = "tone"
    general_weights: ClassVar[tuple[str, ...]] = ("constant", "slope")

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder, "click")
        self.constant = nn.Parameter(torch.zeros(3 * FUNCTIONS))
        self.slope = nn.Parameter(torch.zeros(_DEGREE, 3 * FUNCTIONS))

    @override
    def code(self, features: torch.Tensor, prompts: Sequence[Prompt], images: torch.Tensor) -> torch.Tensor:
        level = 2 * clicked_levels(images, prompts) / (_LEVELS - 1) - 1
        powers = torch.stack([level**degree for degree in range(1, _DEGREE + 1)], 1)
        return (self.constant + powers @ self.slope).view(-1, 3, FUNCTIONS, 1, 1)

    @override
    def encoding_key(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> Hashable:
        return int(clicked_levels(images, prompts)[0])


def clicked_levels(images: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
    """Measure the grey level around the first positive click of each prompt, or in the middle of its box.

    Args:
        images: images, (B, 3, S, S) float in [0, 255].
        prompts: one per image, in pixels of the image.

    Returns:
        Whole levels from 0 to 63, (B,) float.
    """
    radius, last = images.shape[-1] // _RADIUS, images.shape[-1] - 1
    levels = []
    for image, prompt in zip(images, prompts, strict=True):
        if prompt.positive:
            point = prompt.positive[0]
        else:
            assert prompt.box is not None
            point = ((prompt.box[0] + prompt.box[2]) / 2, (prompt.box[1] + prompt.box[3]) / 2)
        x, y = (min(max(round(coordinate), 0), last) for coordinate in point)
        square = image[:, max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
        levels.append(square.mean() / 255 * (_LEVELS - 1))
    return torch.stack(levels).round()
