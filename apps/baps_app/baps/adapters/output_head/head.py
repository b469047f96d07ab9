"""The network of the output-side head.

Ours, after CraFT (Wang et al., *Connecting the Dots: Collaborative Fine-tuning for Black-Box Vision-Language Models*,
ICML 2024), which refines the predictions of a black box by a local network at no query cost; there for classification.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from baps.adapters.output_head.features import FEATURES, as_logit, head_features
from baps.prompts import Prompt

_WIDTH = 8
_REACH = 3.0
_BOUND = 6.0


def _convolution(inputs: int, outputs: int, width: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, width, padding=width // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class OutputHead(nn.Module):
    """Adds a correction to the log odds of each pixel. Untrained, it adds nothing.

    A small U-Net (Ronneberger et al., MICCAI 2015) of three levels.

    Args:
        seed: of its weights.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            # What hardly varied in training (boxes, where only clicks were given) must not be blown up afterwards.
            self.normalise = nn.BatchNorm2d(FEATURES, eps=1e-2, affine=False)
            self.fine = _convolution(FEATURES, _WIDTH, width=1)  # The features know their surroundings.
            self.middle = _convolution(_WIDTH, 2 * _WIDTH)
            self.coarse = nn.Sequential(_convolution(2 * _WIDTH, 4 * _WIDTH), _convolution(4 * _WIDTH, 4 * _WIDTH))
            self.to_middle = _convolution(6 * _WIDTH, 2 * _WIDTH)
            self.to_fine = _convolution(3 * _WIDTH, _WIDTH)
            self.last = nn.Conv2d(_WIDTH, 1, 1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features (B, FEATURES, GRID, GRID) to corrections of the log odds, (B, 1, GRID, GRID)."""
        fine = self.fine(self.normalise(features).clamp(-_BOUND, _BOUND))
        middle = self.middle(F.avg_pool2d(fine, 2))
        coarse = self.coarse(F.avg_pool2d(middle, 2))
        middle = self.to_middle(torch.cat([_twice(coarse), middle], 1))
        correction: torch.Tensor = _REACH * self.last(self.to_fine(torch.cat([_twice(middle), fine], 1)))
        return correction

    @torch.no_grad()
    def refine(self, images: torch.Tensor, probability: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Corrected probabilities.

        Args:
            images: as they were before the visual prompt changed them, (B, 3, S, S) float in [0, 255].
            probability: what the black box answered, (B, S, S).
            prompts: one an image, pixels of the canvas.

        Returns:
            (B, S, S).
        """
        correction = self(head_features(images, probability, prompts))
        size = probability.shape[-2:]
        return (as_logit(probability) + F.interpolate(correction, size, mode="bilinear")[:, 0]).sigmoid()


def _twice(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
