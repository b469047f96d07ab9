"""The image-prompt decoder as published: BAPS (Paranjape et al., MICCAI 2024), Concat decoder.

Features and click code are joined, viewed as (C, 7, 7), and transposed convolutions make of them an image of 224 x 224
that is added to the normalised input. Unlike the reference code, the random Fourier matrix is part of the state, the
body is initialised alive, and the last layer alone is zero: untrained, the prompt is exactly nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from ..blackbox import Prompt
from ..errors import InputError
from .interface import VisualPrompt, as_grey_levels

SIDE = 224
_CELLS = 7 * 7
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)
_NOISE_CELLS = 4


class _LayerNorm2d(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _stage(inputs: int, middle: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(inputs, middle, 2, 2),
        nn.ConvTranspose2d(middle, outputs, 1),
        _LayerNorm2d(outputs, eps=1e-6),
        nn.GELU(),
    )


class ConcatVisualPrompt(VisualPrompt):
    """The published decoder.

    Args:
        features: length of the features, dim(z).
        channels: C; the click code gets the length P = 49 C - dim(z), so that no channel mixes the two. Published
            for CLIP ViT-B/32 (dim(z) 512): C 21. Our choice for ViT-MAE (768): C 32.
        seed: of the random Fourier matrix and of the body.

    Raises:
        InputError: if C leaves no room for the click.
    """

    kind: ClassVar[str] = "concat"
    conditioned_on_click: ClassVar[bool] = True
    fourier: torch.Tensor

    def __init__(self, features: int, channels: int = 21, seed: int = 0) -> None:
        super().__init__()
        click_length = _CELLS * channels - features
        if click_length <= 0:
            raise InputError(f"{channels} channels leave no room for the click beside {features} features; take more.")
        self.features, self.channels = features, channels
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.register_buffer("fourier", torch.randn(2, 256))
            self.click = nn.Sequential(nn.Linear(512, click_length), nn.LayerNorm(click_length), nn.GELU())
            self.stages = nn.Sequential(
                _stage(channels, 64, 64), _stage(64, 64, 32), _stage(32, 32, 32), _stage(32, 32, 16)
            )
            self.last = nn.ConvTranspose2d(16, 3, 2, 2)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def click_code(self, prompts: Sequence[Prompt], side: int) -> torch.Tensor:
        """Random Fourier features of the clicks, (B, 512); the mean over several clicks.

        ``(coord + 0.5) / 224`` mapped to [-1, 1], times N(0, 1), times 2 pi, then sine and cosine. A box without a
        click counts as clicks at two of its corners.
        """
        rows = []
        for prompt in prompts:
            points = prompt.positive
            if not points:
                assert prompt.box is not None
                points = (prompt.box[:2], prompt.box[2:])
            where = (torch.tensor(points, device=self.fourier.device) + 0.5) / side * 2 - 1
            angle = where @ self.fourier * (2 * math.pi)
            rows.append(torch.cat([angle.sin(), angle.cos()], 1).mean(0))
        return torch.stack(rows)

    def code(self, features: torch.Tensor, prompts: Sequence[Prompt], side: int) -> torch.Tensor:
        joined = torch.cat([features, self.click(self.click_code(prompts, side))], 1)
        return self.last(self.stages(joined.view(-1, self.channels, 7, 7)))

    def apply_code(self, images: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        side = images.shape[-1]
        if side != SIDE:
            code = F.interpolate(code, (side, side), mode="bilinear", align_corners=False, antialias=side < SIDE)
        mean, std = (images.new_tensor(value).view(1, 3, 1, 1) for value in (_MEAN, _STD))
        return as_grey_levels(((images - mean) / std + code) * std + mean)

    def directions(self, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
        coarse = torch.randn((shape[0], 3, _NOISE_CELLS, _NOISE_CELLS), generator=generator)
        return F.interpolate(coarse, shape[-2:], mode="bilinear", align_corners=False)
