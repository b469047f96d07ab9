"""Build the 3D U-Net of Models Genesis and SuPreM as a foundation model.

Zhou et al., MedIA 2021; Li et al., ICLR 2024. Its modules have the names of the published weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from baps.fseft.models.foundation import FoundationModel
from baps.fseft.models.text_driven import build_text_driven

_CHANNELS, _COARSEST_CHANNELS = 64, 512


class _Norm(nn.Module):
    """Normalise each channel of each image by its own mean and variance.

    The published network normalises by the batch, in training and inference; for a batch of one image, that is the
    same. The output for an image thus does not depend on the rest of the batch. The running statistics in the published
    weights were never used.

    Args:
        channels: number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.instance_norm(x, weight=self.weight, bias=self.bias)


class _Convolution(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.bn1 = _Norm(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn1(self.conv1(x)))


class _Down(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.ops = nn.Sequential(_Convolution(inputs, outputs // 2), _Convolution(outputs // 2, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.ops(x)
        return output


class _Up(nn.Module):
    def __init__(self, inputs: int, skipped: int) -> None:
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(inputs, inputs, 2, stride=2)
        self.ops = nn.Sequential(_Convolution(inputs + skipped, skipped), _Convolution(skipped, skipped))

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.ops(torch.cat([self.up_conv(x), skip], 1))
        return output


class _Body(nn.Module):
    """A body with four levels, of 64, 128, 256 and 512 channels. It is a ``Backbone``."""

    def __init__(self) -> None:
        super().__init__()
        self.down_tr64, self.down_tr128 = _Down(1, 64), _Down(64, 128)
        self.down_tr256, self.down_tr512 = _Down(128, 256), _Down(256, 512)
        self.up_tr256, self.up_tr128, self.up_tr64 = _Up(512, 256), _Up(256, 128), _Up(128, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.levels(x)[1]

    def levels(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        level64 = self.down_tr64(images)
        level128 = self.down_tr128(F.max_pool3d(level64, 2))
        level256 = self.down_tr256(F.max_pool3d(level128, 2))
        level512 = self.down_tr512(F.max_pool3d(level256, 2))
        return level512, self.up_tr64(self.up_tr128(self.up_tr256(level512, level256), level128), level64)


def build_unet(classes: Sequence[str], *, text_driven: bool = False) -> FoundationModel:
    """Build a U-Net with random weights (19 M parameters), on the CPU.

    Args:
        classes: names of the classes, see ``FoundationModel``.
        text_driven: whether it has a text-driven head rather than a linear one.

    Returns:
        The model.
    """
    encoder = ["down_tr64", "down_tr128", "down_tr256", "down_tr512"]
    decoder = ["up_tr256", "up_tr128", "up_tr64"]
    if text_driven:
        return build_text_driven(_Body, _CHANNELS, _COARSEST_CHANNELS, classes, 8, encoder, decoder)
    return FoundationModel(_Body, _CHANNELS, classes, 8, encoder, decoder)
