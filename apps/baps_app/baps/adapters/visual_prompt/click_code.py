"""The code of a click: random Fourier features of its place, as published (Paranjape et al., MICCAI 2024).

Unlike the reference code, whoever uses it keeps the random matrix in its state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from baps.prompts import Prompt

CLICK_LENGTH = 512


def fourier_matrix() -> torch.Tensor:
    """N(0, 1), (2, CLICK_LENGTH / 2)."""
    return torch.randn(2, CLICK_LENGTH // 2)


def click_code(prompts: Sequence[Prompt], side: int, fourier: torch.Tensor) -> torch.Tensor:
    """Codes (B, CLICK_LENGTH) of prompts in pixels of a canvas of ``side`` pixels; the mean over several clicks.

    ``(coord + 0.5) / side`` mapped to [-1, 1], times the matrix, times 2 pi, then sine and cosine. A box without a
    click counts as clicks at two of its corners.
    """
    rows = []
    for prompt in prompts:
        points = prompt.positive
        if not points:
            assert prompt.box is not None
            points = (prompt.box[:2], prompt.box[2:])
        where = (torch.tensor(points, device=fourier.device) + 0.5) / side * 2 - 1
        angle = where @ fourier * (2 * math.pi)
        rows.append(torch.cat([angle.sin(), angle.cos()], 1).mean(0))
    return torch.stack(rows)
