"""The text-driven head of the Universal Model and SuPreM, as the last part of a network's features.

Liu et al., ICCV 2023; Li et al., ICLR 2024. For each image and class, a linear layer reads the pooled coarsest features
and an embedding of the class's name, and generates the weights of three 1x1x1 convolutions, which compute the logit of
each voxel. The logits are appended to the features, and a linear head selects them. What reads features and a linear
head thus works as with other models, and begins at the published answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import nn

from baps.fseft.models.foundation import FoundationModel

GROUPS = 16
"""Number of groups of the head's normalisation, which must divide the number of channels."""

_TEXT, _VISION, _WIDTH = 512, 256, 8
_SPLIT = (_WIDTH * _WIDTH, _WIDTH * _WIDTH, _WIDTH, _WIDTH, _WIDTH, 1)
"""Sizes of what is generated per class: the weights of three layers, then their biases."""

_SCALE = 5.0
"""Typical logit of a confident output; adapters read features of unit size."""


class Backbone(Protocol):
    """A network that returns its coarsest features too."""

    def levels(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute features.

        Args:
            images: (B, 1, H, W, D) in [0, 1].

        Returns:
            The coarsest features, (B, Z, h, w, d), and the penultimate ones, (B, C, H, W, D).
        """


class TextDrivenBody(nn.Module):
    """A backbone with the head. Its modules have the names of the published weights.

    Args:
        backbone: a module that is a ``Backbone``.
        channels: C of the backbone, a multiple of ``GROUPS``.
        coarsest: Z of the backbone, likewise.
        classes: number of classes, K.
    """

    def __init__(self, backbone: nn.Module, channels: int, coarsest: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("organ_embedding", torch.randn(classes, _TEXT))
        self.text_to_vision = nn.Linear(_TEXT, _VISION)
        self.GAP = nn.Sequential(
            nn.GroupNorm(GROUPS, coarsest), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Conv3d(coarsest, _VISION, 1)
        )
        self.controller = nn.Conv3d(2 * _VISION, sum(_SPLIT), 1)
        self.precls_conv = nn.Sequential(nn.GroupNorm(GROUPS, channels), nn.ReLU(), nn.Conv3d(channels, _WIDTH, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute features and logits.

        Args:
            images: (B, 1, H, W, D) in [0, 1].

        Returns:
            (B, C + K, H, W, D): the backbone's penultimate features, then a fifth of the logit of each class.
        """
        levels: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] = self.backbone.levels  # type: ignore[assignment]
        coarsest, features = levels(images)
        return torch.cat([features, self._logits(coarsest, features) / _SCALE], 1)

    def _logits(self, coarsest: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        classes, images = len(self.get_buffer("organ_embedding")), len(features)
        text = torch.relu(self.text_to_vision(self.get_buffer("organ_embedding")))
        vision = self.GAP(coarsest).flatten(1)
        both = torch.cat([vision[:, None].expand(-1, classes, -1), text.expand(images, -1, -1)], 2)
        generated = self.controller(both.reshape(-1, 2 * _VISION, 1, 1, 1)).view(images, classes, -1)
        first, second, third, *biases = generated.split(_SPLIT, 2)
        voxels = self.precls_conv(features).flatten(2)
        logits = []
        for k in range(classes):  # One at a time: the hidden layers of all would not fit into memory.
            hidden = voxels
            for weight, bias in zip((first, second, third), biases, strict=True):
                outputs = bias.shape[2]
                layer = torch.baddbmm(bias[:, k, :, None], weight[:, k].view(images, outputs, _WIDTH), hidden)
                hidden = torch.relu(layer) if outputs > 1 else layer
            logits.append(hidden)
        return torch.cat(logits, 1).view(images, classes, *features.shape[2:])


def build_text_driven(
    new_backbone: Callable[[], nn.Module],
    channels: int,
    coarsest: int,
    classes: Sequence[str],
    multiple: int | tuple[int, int, int],
    encoder: Sequence[str],
    decoder: Sequence[str],
) -> FoundationModel:
    """Build a foundation model with a text-driven head and random weights, on the CPU.

    Args:
        new_backbone: builds a module that is a ``Backbone``.
        channels: C of the backbone, a multiple of ``GROUPS``.
        coarsest: Z of the backbone, likewise.
        classes: names of the K classes.
        multiple: see ``FoundationModel``.
        encoder: see ``FoundationModel``; names of the backbone's modules.
        decoder: likewise.

    Returns:
        The model, with C + K channels of features.
    """

    def new_body() -> nn.Module:
        return TextDrivenBody(new_backbone(), channels, coarsest, len(classes))

    names = ([f"backbone.{name}" for name in part] for part in (encoder, decoder))
    model = FoundationModel(new_body, channels + len(classes), classes, multiple, *names)
    model.select_logits(_SCALE)
    return model
