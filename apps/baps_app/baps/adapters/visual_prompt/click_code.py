"""Encode clicks as random Fourier features of their position, as published (Paranjape et al., MICCAI 2024).

Unlike in the reference code, the random matrix is part of the state of the network that uses it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from baps.prompts import Prompt

CLICK_LENGTH = 512
"""Length of the code of a click."""


def fourier_matrix() -> torch.Tensor:
    """Draw the random matrix from N(0, 1), with the global random generator.

    Returns:
        The matrix, (2, CLICK_LENGTH / 2).
    """
    return torch.randn(2, CLICK_LENGTH // 2)


def click_code(prompts: Sequence[Prompt], image_size: int, fourier: torch.Tensor) -> torch.Tensor:
    """Encode the clicks of prompts. The code of several clicks is their mean.

    ``(coord + 0.5) / image_size`` is mapped to [-1, 1] and multiplied by the matrix and 2 pi; sine and cosine follow. A
    box without a click counts as clicks at two of its corners.

    Args:
        prompts: the prompts, in pixels of the image.
        image_size: width and height of the image, pixels.
        fourier: the random matrix.

    Returns:
        Codes, (B, CLICK_LENGTH).
    """
    rows = []
    for prompt in prompts:
        points = prompt.positive
        if not points:
            assert prompt.box is not None
            points = (prompt.box[:2], prompt.box[2:])
        position = (torch.tensor(points, device=fourier.device) + 0.5) / image_size * 2 - 1
        angle = position @ fourier * (2 * math.pi)
        rows.append(torch.cat([angle.sin(), angle.cos()], 1).mean(0))
    return torch.stack(rows)
