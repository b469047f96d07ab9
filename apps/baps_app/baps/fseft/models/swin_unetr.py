"""Build Swin UNETR, the network of MONAI, as a foundation model.

Hatamizadeh et al., *Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors in MRI Images*, BrainLes
2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets import SwinUNETR
from torch import nn

from baps.fseft.models.foundation import FoundationModel
from baps.fseft.models.text_driven import build_text_driven

_PUBLISHED_NEIGHBOURS = (
    (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1),
)  # fmt: skip
"""Neighbours in the order of MONAI 0.9: two are joined twice, and two never."""


class _PublishedMerging(nn.Module):
    """Join eight neighbours to one, as MONAI did when the published weights were trained.

    MONAI's own ``merging`` joins each neighbour once since 1.5, which gives published weights another input.

    Args:
        dim: number of channels, C.
        norm_layer: the normalisation.
        spatial_dims: 3.
    """

    def __init__(self, dim: int, norm_layer: type[nn.Module] = nn.LayerNorm, spatial_dims: int = 3) -> None:
        super().__init__()
        self.reduction = nn.Linear(2**spatial_dims * dim, 2 * dim, bias=False)
        self.norm = norm_layer(2**spatial_dims * dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([x[:, i::2, j::2, k::2] for i, j, k in _PUBLISHED_NEIGHBOURS], -1)
        output: torch.Tensor = self.reduction(self.norm(joined))
        return output


class _Body(SwinUNETR):
    """Return the input of MONAI's own head. It is a ``Backbone``.

    Args:
        feature_size: number of penultimate channels.
        window: side of the attention windows, voxels.
        downsample: see MONAI.
    """

    def __init__(self, feature_size: int, window: int, downsample: Any) -> None:
        super().__init__(
            in_channels=1, out_channels=1, feature_size=feature_size, window_size=window, downsample=downsample
        )
        self.out = nn.Identity()

    def levels(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.swinViT(images, self.normalize)
        coarsest = self.encoder10(hidden[4])
        x = self.decoder5(coarsest, hidden[3])
        x = self.decoder4(x, self.encoder4(hidden[2]))
        x = self.decoder3(x, self.encoder3(hidden[1]))
        x = self.decoder2(x, self.encoder2(hidden[0]))
        return coarsest, self.decoder1(x, self.encoder1(images))


def build_swin_unetr(
    classes: Sequence[str],
    feature_size: int = 48,
    window: int = 7,
    *,
    published: bool = False,
    text_driven: bool = False,
) -> FoundationModel:
    """Build a Swin UNETR with random weights, on the CPU.

    Args:
        classes: names of the classes, see ``FoundationModel``.
        feature_size: number of penultimate channels, a multiple of 12; 48 in the published models (62 M parameters).
        window: side of the attention windows, voxels; 7 in the published models, 4 is four times as fast.
        published: whether neighbours are joined as when the published weights were trained.
        text_driven: whether it has a text-driven head rather than a linear one; the number of channels must then be a
            multiple of 48.

    Returns:
        The model.
    """

    def body() -> nn.Module:
        return _Body(feature_size, window, _PublishedMerging if published else "merging")

    # The convolutions on the skip connections (encoder1 to encoder10) belong to neither: they are never tuned.
    encoder, decoder = ["swinViT"], ["decoder5", "decoder4", "decoder3", "decoder2", "decoder1"]
    if text_driven:
        return build_text_driven(body, feature_size, 16 * feature_size, classes, 32, encoder, decoder)
    return FoundationModel(body, feature_size, classes, 32, encoder, decoder)
