"""Swin UNETR (Hatamizadeh et al., *Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors in MRI
Images*, BrainLes 2021), the network of MONAI, as a foundation model.
"""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import SwinUNETR
from torch import nn

from baps.fseft.models.foundation import FoundationModel


def build_swin_unetr(classes: Sequence[str], feature_size: int = 48, window: int = 7) -> FoundationModel:
    """A Swin UNETR with random weights, on the CPU.

    Args:
        classes: see ``FoundationModel``.
        feature_size: penultimate channels, a multiple of 12; 48 of the published models (62 M parameters).
        window: voxels along each side of the cubes within which is attended; 7 of the published models, 4 is four times
            as fast.
    """

    def body() -> nn.Module:
        network: nn.Module = SwinUNETR(in_channels=1, out_channels=1, feature_size=feature_size, window_size=window)
        network.out = nn.Identity()  # What its own head would have read.
        return network

    # The convolutions on the skip connections (encoder1 to encoder10) belong to neither: they stay as they are.
    return FoundationModel(
        body, feature_size, classes, 32, ["swinViT"], ["decoder5", "decoder4", "decoder3", "decoder2", "decoder1"]
    )
