"""Define the visual prompt of volumes: a tone curve whose shape depends on the grey level at the prompt.

It is the visual prompt ``tone`` of slices with one channel: the coefficients of {1, I, I^2, local detail} are quadratic
polynomials of the level, 12 numbers in all.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

FUNCTIONS = 4
"""Number of basis functions."""

_DEGREE = 2
_DETAIL_WIDTH = 5
"""Width of the cube whose mean is subtracted for the local detail, voxels."""


class VolumeTone(nn.Module):
    """Change a cube by a tone curve. Untrained, it changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.zeros(FUNCTIONS))
        """The coefficients at the middle grey level, (FUNCTIONS,)."""
        self.slope = nn.Parameter(torch.zeros(_DEGREE, FUNCTIONS))
        """Their first and second order in the level, (2, FUNCTIONS)."""

    def code(self, levels: torch.Tensor) -> torch.Tensor:
        """Compute the coefficients.

        Args:
            levels: grey levels at the prompts, (B,) in [0, 1].

        Returns:
            Coefficients, (B, FUNCTIONS), differentiable in the weights.
        """
        centred = 2 * levels - 1
        powers = torch.stack([centred**degree for degree in range(1, _DEGREE + 1)], 1)
        return self.constant + powers @ self.slope

    @staticmethod
    @torch.no_grad()
    def apply_code(cubes: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Change cubes by given coefficients.

        Args:
            cubes: grey values in [0, 1], (B, S, S, S).
            code: coefficients, (B, FUNCTIONS).

        Returns:
            Changed cubes in [0, 1], (B, S, S, S).
        """
        x = F.pad(cubes[:, None], (_DETAIL_WIDTH // 2,) * 6, mode="replicate")
        mean = F.avg_pool3d(x, _DETAIL_WIDTH, 1)[:, 0]
        centred = cubes - 0.5
        functions = (torch.ones_like(cubes), 2 * centred, 4 * centred.square(), 4 * (cubes - mean))
        changed = cubes
        for number, function in enumerate(functions):
            changed = changed + code[:, number].view(-1, 1, 1, 1) * function
        return changed.clamp(0, 1)
