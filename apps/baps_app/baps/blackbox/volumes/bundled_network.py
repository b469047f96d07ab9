"""Define the network of the small volumetric model that comes with the project, and its input.

It is a residual U-Net on a cube of 64 voxels a side with prompts as channels, as in nnInteractive (Isensee et al.,
2025). It knows no classes and no anatomy.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

SIDE = 64
"""Number of voxels along each side of the cube."""

CHANNELS = ("image", "level", "mask", "positive", "negative", "region")
"""Channels of the input: the image; its difference from the grey level at the prompt; the mask to be corrected; what
clicks and scribbles mark as the object; what they mark as not the object; the inside of boxes and lassos."""

_WIDTHS = (24, 48, 96, 160)
_FINE = 8
_LOW, _HIGH = 0.01, 0.99
"""Quantiles of a cube's grey values that become 0 and 1."""


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(8, outputs), nn.ReLU(inplace=True)
    )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(channels, channels)
        self.second = nn.Sequential(nn.Conv3d(channels, channels, 3, 1, 1, bias=False), nn.GroupNorm(8, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.second(self.first(x)))


class VolumeNetwork(nn.Module):
    """A residual U-Net whose coarsest grid has a sixteenth of the resolution."""

    def __init__(self) -> None:
        super().__init__()
        w = _WIDTHS
        self.stem = _convolution(len(CHANNELS), w[0], 2)
        self.down2 = _Residual(w[0])
        self.down4 = nn.Sequential(_convolution(w[0], w[1], 2), _Residual(w[1]), _Residual(w[1]))
        self.down8 = nn.Sequential(_convolution(w[1], w[2], 2), _Residual(w[2]), _Residual(w[2]))
        self.down16 = nn.Sequential(_convolution(w[2], w[3], 2), _Residual(w[3]))
        self.lateral8, self.up8 = nn.Conv3d(w[3], w[2], 1), _Residual(w[2])
        self.lateral4, self.up4 = nn.Conv3d(w[2], w[1], 1), _Residual(w[1])
        self.lateral2, self.up2 = nn.Conv3d(w[1], w[0], 1), _Residual(w[0])
        self.split = nn.Conv3d(w[0], 8 * _FINE, 1)
        self.fine = nn.Sequential(_convolution(_FINE + len(CHANNELS), _FINE), nn.Conv3d(_FINE, 1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Segment cubes.

        Args:
            x: input, (B, 6, S, S, S), see ``network_input``; S is a multiple of 16.

        Returns:
            Logits of the object, (B, 1, S, S, S).
        """
        x2 = self.down2(self.stem(x))
        x4 = self.down4(x2)
        x8 = self.down8(x4)
        y8 = self.up8(x8 + _twice(self.lateral8(self.down16(x8))))
        y4 = self.up4(x4 + _twice(self.lateral4(y8)))
        y2 = self.up2(x2 + _twice(self.lateral2(y4)))
        fine = _to_octants(self.split(y2))
        logits: torch.Tensor = self.fine(torch.cat([fine, x], 1))
        return logits


def _twice(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=False)


def _to_octants(x: torch.Tensor) -> torch.Tensor:
    """Move eight channels to the eight voxels of twice the resolution: (B, 8 C, S, S, S) to (B, C, 2S, 2S, 2S)."""
    batch, channels, side = x.shape[0], x.shape[1] // 8, x.shape[2]
    x = x.reshape(batch, channels, 2, 2, 2, side, side, side).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(batch, channels, 2 * side, 2 * side, 2 * side)


def network_input(
    image: torch.Tensor, mask: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, region: torch.Tensor
) -> torch.Tensor:
    """Make the input of the network.

    Args:
        image: grey values, (B, S, S, S) float, of any range.
        mask: probability of the object so far, (B, S, S, S), 0 where there is no mask to be corrected.
        positive: 1 at the voxels that clicks and scribbles mark as the object, (B, S, S, S).
        negative: likewise, as not the object.
        region: 1 inside boxes and lassos around the object, (B, S, S, S).

    Returns:
        The input, (B, 6, S, S, S).
    """
    sampled = image[:, ::3, ::3, ::3].flatten(1)
    low, high = (sampled.quantile(share, dim=1).view(-1, 1, 1, 1) for share in (_LOW, _HIGH))
    grey = ((image - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    positive, negative = (F.max_pool3d(one.unsqueeze(1), 3, 1, 1)[:, 0] for one in (positive, negative))
    level = grey - _level(grey, mask, positive, region)
    return torch.stack([2 * grey - 1, 2 * level, mask, positive, negative, region], 1)


def _level(grey: torch.Tensor, mask: torch.Tensor, positive: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """Return the mean grey level at the clicks; without any, in the mask; without one, in the region: (B, 1, 1, 1)."""
    by_region = _mean(grey, region)
    by_mask = torch.where(_any(mask), _mean(grey, mask), by_region)
    return torch.where(_any(positive), _mean(grey, positive), by_mask)


def _mean(grey: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (grey * weight).sum((1, 2, 3), keepdim=True) / weight.sum((1, 2, 3), keepdim=True).clamp(min=1e-6)


def _any(weight: torch.Tensor) -> torch.Tensor:
    return weight.amax((1, 2, 3), keepdim=True) > 0
