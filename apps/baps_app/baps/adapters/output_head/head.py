"""Define the network of the output head.

It is our own, after CraFT (Wang et al., *Connecting the Dots: Collaborative Fine-tuning for Black-Box Vision-Language
Models*, ICML 2024), which refines the predictions of a black-box classifier by a local network at no query cost.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from baps.adapters.output_head.features import FEATURES, head_features, to_logits
from baps.prompts import Prompt

_CHANNELS = 8
_MAX_CORRECTION_SCALE = 3.0
_MAX_FEATURE = 6.0


def _convolution(inputs: int, outputs: int, width: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, width, padding=width // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class OutputHead(nn.Module):
    """A small U-Net (Ronneberger et al., MICCAI 2015) that adds a correction to the log odds of each pixel.

    It has three levels. Untrained, it adds nothing.

    Args:
        seed: seed of its initial weights.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            # The large eps keeps features that hardly varied in training (boxes, with clicks only) small.
            self.normalise = nn.BatchNorm2d(FEATURES, eps=1e-2, affine=False)
            self.fine = _convolution(FEATURES, _CHANNELS, width=1)  # The features contain their surroundings.
            self.middle = _convolution(_CHANNELS, 2 * _CHANNELS)
            self.coarse = nn.Sequential(
                _convolution(2 * _CHANNELS, 4 * _CHANNELS), _convolution(4 * _CHANNELS, 4 * _CHANNELS)
            )
            self.to_middle = _convolution(6 * _CHANNELS, 2 * _CHANNELS)
            self.to_fine = _convolution(3 * _CHANNELS, _CHANNELS)
            self.last = nn.Conv2d(_CHANNELS, 1, 1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Compute corrections of the log odds.

        Args:
            features: what ``head_features`` returned, (B, FEATURES, GRID, GRID).

        Returns:
            Corrections, (B, 1, GRID, GRID).
        """
        fine = self.fine(self.normalise(features).clamp(-_MAX_FEATURE, _MAX_FEATURE))
        middle = self.middle(F.avg_pool2d(fine, 2))
        coarse = self.coarse(F.avg_pool2d(middle, 2))
        middle = self.to_middle(torch.cat([_twice(coarse), middle], 1))
        correction: torch.Tensor = _MAX_CORRECTION_SCALE * self.last(self.to_fine(torch.cat([_twice(middle), fine], 1)))
        return correction

    @torch.no_grad()
    def refine_masks(self, images: torch.Tensor, probability: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Correct the black box's predictions.

        Args:
            images: images before the visual prompt changed them, (B, 3, S, S) float in [0, 255].
            probability: what the black box predicted, (B, S, S).
            prompts: one per image, in pixels of the image.

        Returns:
            Corrected probabilities, (B, S, S).
        """
        correction = self(head_features(images, probability, prompts))
        size = probability.shape[-2:]
        return (to_logits(probability) + F.interpolate(correction, size, mode="bilinear")[:, 0]).sigmoid()


def _twice(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
