"""Define the network of the volume head, which corrects the answers of a 3D black box on a coarse grid."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from baps.adapters.output_head import to_logits
from baps.adapters.volumes.features import VOLUME_FEATURES

_CHANNELS = 8
_MAX_CORRECTION_SCALE = 3.0
_MAX_FEATURE = 6.0


def _convolution(inputs: int, outputs: int, width: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, width, padding=width // 2, bias=False),
        nn.BatchNorm3d(outputs),
        nn.ReLU(inplace=True),
    )


class VolumeHead(nn.Module):
    """A small 3D U-Net with three levels that adds a correction to the log odds. Untrained, it adds nothing.

    Args:
        seed: seed of its initial weights.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            # The large eps keeps features that hardly varied in training (boxes, with clicks only) small.
            self.normalise = nn.BatchNorm3d(VOLUME_FEATURES, eps=1e-2, affine=False)
            self.fine = _convolution(VOLUME_FEATURES, _CHANNELS, width=1)  # The features contain their surroundings.
            self.middle = _convolution(_CHANNELS, 2 * _CHANNELS)
            self.coarse = _convolution(2 * _CHANNELS, 4 * _CHANNELS)
            self.to_middle = _convolution(6 * _CHANNELS, 2 * _CHANNELS)
            self.to_fine = _convolution(3 * _CHANNELS, _CHANNELS)
            self.last = nn.Conv3d(_CHANNELS, 1, 1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Compute corrections of the log odds.

        Args:
            features: what ``volume_head_features`` returned, (B, VOLUME_FEATURES, G, G, G).

        Returns:
            Corrections, (B, 1, G, G, G).
        """
        fine = self.fine(self.normalise(features).clamp(-_MAX_FEATURE, _MAX_FEATURE))
        middle = self.middle(F.avg_pool3d(fine, 2))
        coarse = self.coarse(F.avg_pool3d(middle, 2))
        middle = self.to_middle(torch.cat([_twice(coarse), middle], 1))
        correction: torch.Tensor = _MAX_CORRECTION_SCALE * self.last(self.to_fine(torch.cat([_twice(middle), fine], 1)))
        return correction

    @torch.no_grad()
    def refine(self, features: torch.Tensor, probability: torch.Tensor) -> torch.Tensor:
        """Correct answers of the black box.

        Args:
            features: what ``volume_head_features`` returned for them.
            probability: the answers, (B, S, S, S).

        Returns:
            Corrected probabilities, (B, S, S, S).
        """
        correction = F.interpolate(self(features), probability.shape[1:], mode="trilinear", align_corners=False)
        return (to_logits(probability) + correction[:, 0]).sigmoid()


def _twice(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
