"""Prompt-space zeroth-order estimation: the gradient with respect to the code of each image.

The black box begins only after the visual prompt, so only dL/dcode has to be estimated; from there, backpropagation
through the local decoder is exact (docs/explanation/method.md). Every image is a direction of its own, because the
masks come back image by image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

CodeLosses = Callable[[torch.Tensor], torch.Tensor]
"""Losses (2 * B,) of codes (2 * B, ...): two trials an image, the first of every image first."""


def code_gradient(losses: CodeLosses, codes: torch.Tensor, directions: torch.Tensor, radius: float) -> torch.Tensor:
    """Two-sided estimate along one random direction an image.

    ``g_i = [L_i(p_i + r u_i) - L_i(p_i - r u_i)] / (2 r) * u_i``: for directions of unit variance its expectation is
    the gradient of the smoothed loss.

    Args:
        losses: the black box's losses; asked once.
        codes: (B, ...).
        directions: as the codes.
        radius: r.

    Returns:
        The estimate, as the codes.
    """
    plus, minus = losses(torch.cat([codes + radius * directions, codes - radius * directions])).chunk(2)
    slope = (plus - minus) / (2 * radius)
    return slope.view(-1, *[1] * (codes.ndim - 1)) * directions
