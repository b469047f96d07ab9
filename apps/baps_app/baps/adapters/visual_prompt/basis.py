"""A visual prompt in a low-dimensional basis that adapts to the image: local window, contrast and sharpness.

Ours (docs/explanation/method.md): what a model lacks on medical images is mostly the right window. The code is a coarse
grid of coefficients of {1, I, I^2, local detail} for each colour channel; with a grid of one cell, 12 numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from baps.adapters.visual_prompt.click_code import CLICK_LENGTH, click_code, fourier_matrix
from baps.adapters.visual_prompt.encoder import Encoder
from baps.adapters.visual_prompt.interface import VisualPrompt
from baps.adapters.visual_prompt.local_mean import local_mean
from baps.prompts import Prompt

FUNCTIONS = 4


class BasisVisualPrompt(VisualPrompt):
    """Coefficients from the features of the image and, on that condition, from the click.

    Args:
        encoder, condition: see ``VisualPrompt``.
        grid: cells of the coarse grid along each side.
        seed: of the body and of the random Fourier matrix.
    """

    kind: ClassVar[str] = "basis"
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

    def code(self, features: torch.Tensor, prompts: Sequence[Prompt], side: int) -> torch.Tensor:
        if self.conditioned_on_click:
            features = torch.cat([features, click_code(prompts, side, self.fourier)], 1)
        return self.head(self.body(features)).view(-1, 3, FUNCTIONS, self.grid, self.grid)

    def unrounded(self, images: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        x, side = images / 255.0, images.shape[-1]
        fields = code.flatten(1, 2)
        if self.grid > 1:
            fields = F.interpolate(fields, (side, side), mode="bilinear", align_corners=False)
        # (directions, images, colours, functions, H, W); the functions depend on the image alone.
        fields = fields.view(-1, len(images), 3, FUNCTIONS, *fields.shape[-2:])
        changed = x
        for n, function in enumerate(basis_functions(x)):
            changed = torch.addcmul(changed, fields[:, :, :, n], function)
        return changed.flatten(0, 1) * 255.0

    def directions(self, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(shape, generator=generator)


def basis_functions(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """{1, I, I^2, local detail} of images (B, 3, S, S) in [0, 1], centred and of like size, each (B, 3, S, S)."""
    centred = x - 0.5
    grey = x[:, :1] if bool((x == x[:, :1]).all()) else x
    detail = 4 * (grey - local_mean(grey, x.shape[-1] // 16 * 2 + 1))
    return torch.ones_like(x), 2 * centred, 4 * centred.square(), detail.expand_as(x)
