"""Estimate the gradient with respect to the code of each image, from losses only.

The black box begins after the visual prompt, so only dL/dcode has to be estimated. From there, backpropagation through
the local network is exact (docs/explanation/method.md). Every image has a direction of its own, because the masks come
back image by image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

CodeLosses = Callable[[torch.Tensor], torch.Tensor]
"""Function from codes (2 * B, ...) to losses (2 * B,): two trials per image, the first trials of all images first."""


def code_gradient(losses: CodeLosses, codes: torch.Tensor, directions: torch.Tensor, radius: float) -> torch.Tensor:
    """Estimate the gradient from two-sided differences along one random direction per image.

    ``g_i = [L_i(p_i + r u_i) - L_i(p_i - r u_i)] / (2 r) * u_i``: for directions of unit variance its expectation is
    the gradient of the smoothed loss.

    Args:
        losses: computes the losses with the black box; called once.
        codes: p, (B, ...).
        directions: u, of the same shape.
        radius: r.

    Returns:
        The estimate, of the same shape as the codes.
    """
    plus, minus = losses(torch.cat([codes + radius * directions, codes - radius * directions])).chunk(2)
    slope = (plus - minus) / (2 * radius)
    return slope.view(-1, *[1] * (codes.ndim - 1)) * directions
