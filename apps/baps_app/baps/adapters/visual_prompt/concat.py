"""Define the visual prompt as published: BAPS (Paranjape et al., MICCAI 2024), Concat decoder.

Features and click code are joined and viewed as (C, 7, 7). Transposed convolutions turn them into an image of 224 x 224
that is added to the normalised input. Unlike in the reference code, the random Fourier matrix is part of the state, the
body is initialised so that gradients flow, and only the last layer is zero: untrained, the prompt changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

from baps.adapters.visual_prompt.click_code import CLICK_LENGTH, click_code, fourier_matrix
from baps.adapters.visual_prompt.encoder import Encoder
from baps.adapters.visual_prompt.interface import VisualPrompt
from baps.errors import InputError
from baps.prompts import Prompt

PROMPT_SIZE = 224
"""Width and height of the image that is added, pixels."""
_CELLS = 7 * 7
_PUBLISHED_CHANNELS = {512: 21}
_MIN_CLICK_LENGTH = 768
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)
_NOISE_CELLS = 4


def choose_channels(features: int) -> int:
    """Choose the number of channels C for the length of the features.

    Published for CLIP ViT-B/32 (512): 21. Our choice for all others is the smallest number that leaves the click 768
    values: 21 for image statistics (224), 32 for ViT-MAE (768) and 58 for DINO's ResNet-50 (2048).

    Args:
        features: length of the features, dim(z).

    Returns:
        C.
    """
    return _PUBLISHED_CHANNELS.get(features) or math.ceil((features + _MIN_CLICK_LENGTH) / _CELLS)


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
        encoder: see ``VisualPrompt``; its length is dim(z).
        channels: C, or None for ``choose_channels``. The click gets the length P = 49 C - dim(z), so that no channel
            mixes the two.
        seed: seed of the random Fourier matrix and of the initial weights.
        condition: see ``VisualPrompt``. With ``label`` every click has the same code, zeros; the architecture stays as
            published.

    Attributes:
        kind: ``concat``.
        fourier: random matrix of ``click_code``.

    Raises:
        InputError: if C leaves no room for the click.
    """

    kind: ClassVar[str] = "concat"
    fourier: torch.Tensor

    def __init__(self, encoder: Encoder, channels: int | None = None, seed: int = 0, condition: str = "label") -> None:
        super().__init__(encoder, condition)
        features = encoder.length
        channels = choose_channels(features) if channels is None else channels
        click_length = _CELLS * channels - features
        if click_length <= 0:
            raise InputError(f"{channels} channels leave no room for the click beside {features} features; take more.")
        self.channels = channels
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.register_buffer("fourier", fourier_matrix())
            self.click = nn.Sequential(nn.Linear(CLICK_LENGTH, click_length), nn.LayerNorm(click_length), nn.GELU())
            self.stages = nn.Sequential(
                _stage(channels, 64, 64), _stage(64, 64, 32), _stage(32, 32, 32), _stage(32, 32, 16)
            )
            self.last = nn.ConvTranspose2d(16, 3, 2, 2)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    @override
    def code(self, features: torch.Tensor, prompts: Sequence[Prompt], images: torch.Tensor) -> torch.Tensor:
        if self.conditioned_on_click:
            click = click_code(prompts, images.shape[-1], self.fourier)
        else:
            click = features.new_zeros(len(features), CLICK_LENGTH)
        joined = torch.cat([features, self.click(click)], 1)
        return self.last(self.stages(joined.view(-1, self.channels, 7, 7)))

    @override
    def apply_unrounded(self, images: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        image_size = images.shape[-1]
        if image_size != PROMPT_SIZE:
            code = F.interpolate(
                code, (image_size, image_size), mode="bilinear", align_corners=False, antialias=image_size < PROMPT_SIZE
            )
        mean, std = (images.new_tensor(value).view(1, 3, 1, 1) for value in (_MEAN, _STD))
        transformed = (images - mean) / std + code.view(-1, *images.shape)
        return transformed.flatten(0, 1) * std + mean

    @override
    def sample_directions(self, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
        coarse = torch.randn((shape[0], 3, _NOISE_CELLS, _NOISE_CELLS), generator=generator)
        return F.interpolate(coarse, shape[-2:], mode="bilinear", align_corners=False)
