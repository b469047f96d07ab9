"""Build Swin UNETR, the network of MONAI, as a foundation model.

Hatamizadeh et al., *Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors in MRI Images*, BrainLes
2021.
"""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import SwinUNETR
from torch import nn

from baps.fseft.models.foundation import FoundationModel


def build_swin_unetr(classes: Sequence[str], feature_size: int = 48, window: int = 7) -> FoundationModel:
    """Build a Swin UNETR with random weights, on the CPU.

    Args:
        classes: names of the classes, see ``FoundationModel``.
        feature_size: number of penultimate channels, a multiple of 12; 48 in the published models (62 M parameters).
        window: side of the attention windows, voxels; 7 in the published models, 4 is four times as fast.

    Returns:
        The model.
    """

    def body() -> nn.Module:
        network: nn.Module = SwinUNETR(in_channels=1, out_channels=1, feature_size=feature_size, window_size=window)
        network.out = nn.Identity()  # Return the input of its own head.
        return network

    # The convolutions on the skip connections (encoder1 to encoder10) belong to neither: they are never tuned.
    return FoundationModel(
        body, feature_size, classes, 32, ["swinViT"], ["decoder5", "decoder4", "decoder3", "decoder2", "decoder1"]
    )
