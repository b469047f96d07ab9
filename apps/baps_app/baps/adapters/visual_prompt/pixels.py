"""Convert between the pixels that a black box takes and the tensors that a visual prompt changes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray


def to_tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Convert pixels to a tensor.

    Args:
        pixels: images, (B, S, S, 3) uint8, RGB.

    Returns:
        Images, (B, 3, S, S) float in [0, 255].
    """
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float()


def to_pixels(images: torch.Tensor) -> NDArray[np.uint8]:
    """Convert a tensor to pixels.

    Args:
        images: images, (B, 3, S, S), of whole grey levels 0 to 255.

    Returns:
        Images, (B, S, S, 3) uint8, RGB.
    """
    pixels: NDArray[np.uint8] = images.permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy()
    return pixels
