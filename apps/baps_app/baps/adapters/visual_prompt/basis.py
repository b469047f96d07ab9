"""Define our visual prompt: local window, contrast and sharpness, in a basis that adapts to the image.

What a model lacks on medical images is mostly the right window (docs/explanation/method.md). The code is a coarse grid
of coefficients of {1, I, I^2, local detail} for each colour channel; with a grid of one cell, 12 numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

from baps.adapters.visual_prompt.click_code import CLICK_LENGTH, click_code, fourier_matrix
from baps.adapters.visual_prompt.encoder import Encoder
from baps.adapters.visual_prompt.interface import VisualPrompt
from baps.adapters.visual_prompt.local_mean import local_mean
from baps.prompts import Prompt

FUNCTIONS = 4
"""Number of basis functions."""


class BasisChange(VisualPrompt):
    """Change an image by a linear combination of basis functions. Subclasses predict the coefficients.

    A code is (B, 3, FUNCTIONS, G, G): a coarse grid of coefficients for each colour channel and function.
    """

    @override
    def apply_unrounded(self, images: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        x, image_size = images / 255.0, images.shape[-1]
        fields = code.flatten(1, 2)
        if fields.shape[-1] > 1:
            fields = F.interpolate(fields, (image_size, image_size), mode="bilinear", align_corners=False)
        # (directions, images, colours, functions, H, W); the functions depend on the image alone.
        fields = fields.view(-1, len(images), 3, FUNCTIONS, *fields.shape[-2:])
        transformed = x
        for n, function in enumerate(basis_functions(x)):
            transformed = torch.addcmul(transformed, fields[:, :, :, n], function)
        return transformed.flatten(0, 1) * 255.0

    @override
    def sample_directions(self, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(shape, generator=generator)


class BasisVisualPrompt(BasisChange):
    """Predict basis coefficients from the features of the image and, if conditioned on it, from the click.

    Args:
        encoder: see ``VisualPrompt``.
        grid: number of cells of the coarse grid along each side.
        seed: seed of the initial weights and of the random Fourier matrix.
        condition: see ``VisualPrompt``.

    Attributes:
        kind: ``basis``.
        general_weights: see ``VisualPrompt``.
        fourier: random matrix of ``click_code``, if conditioned on the click.
    """

    kind: ClassVar[str] = "basis"
    general_weights: ClassVar[tuple[str, ...]] = ("head.bias",)
    fourier: torch.Tensor

    def __init__(self, encoder: Encoder, grid: int = 1, seed: int = 0, condition: str = "label") -> None:
        super().__init__(encoder, condition)
        self.grid = grid
        length = encoder.length + (CLICK_LENGTH if self.conditioned_on_click else 0)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.LayerNorm(length), nn.Linear(length, 32), nn.GELU())
            if self.conditioned_on_click:
                self.register_buffer("fourier", fourier_matrix())
        self.head = nn.Linear(32, 3 * FUNCTIONS * grid * grid)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @override
    def code(self, features: torch.Tensor, prompts: Sequence[Prompt], images: torch.Tensor) -> torch.Tensor:
        if self.conditioned_on_click:
            features = torch.cat([features, click_code(prompts, images.shape[-1], self.fourier)], 1)
        return self.head(self.body(features)).view(-1, 3, FUNCTIONS, self.grid, self.grid)


def basis_functions(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the basis functions {1, I, I^2, local detail}, centred and of similar scale.

    Args:
        x: images, (B, 3, S, S) in [0, 1].

    Returns:
        The four functions, (B, 3, S, S) each.
    """
    centred = x - 0.5
    grey = x[:, :1] if bool((x == x[:, :1]).all()) else x
    detail = 4 * (grey - local_mean(grey, x.shape[-1] // 16 * 2 + 1))
    return torch.ones_like(x), 2 * centred, 4 * centred.square(), detail.expand_as(x)
