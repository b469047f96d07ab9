"""Between the pixels that a black box takes and the tensors that a visual prompt changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..blackbox import Prompt
from .interface import VisualPrompt


def to_tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """(B, S, S, 3) uint8 to (B, 3, S, S) float in [0, 255]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float()


def to_pixels(images: torch.Tensor) -> NDArray[np.uint8]:
    """(B, 3, S, S) of whole grey levels to (B, S, S, 3) uint8."""
    pixels: NDArray[np.uint8] = images.permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy()
    return pixels


def change_pixels(
    visual_prompt: VisualPrompt, pixels: NDArray[np.uint8], prompts: Sequence[Prompt]
) -> NDArray[np.uint8]:
    """Images (B, S, S, 3) uint8 as the visual prompt changes them for the black box. Judging and serving ask here."""
    images = to_tensor(pixels)
    return to_pixels(visual_prompt.change(images, visual_prompt.encoder.features(images), prompts))
