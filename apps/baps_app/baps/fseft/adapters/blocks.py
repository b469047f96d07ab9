"""Find the transformer blocks of a foundation model."""

from __future__ import annotations

from typing import Any

from monai.networks.nets.swin_unetr import SwinTransformerBlock

from baps.fseft.models import FoundationModel


def transformer_blocks(model: FoundationModel) -> list[Any]:
    """Find MONAI's Swin transformer blocks, from the finest to the coarsest.

    Args:
        model: the foundation model.

    Returns:
        The blocks, with ``norm1``, ``attn`` (with the fused ``qkv``), ``norm2``, ``mlp`` and the number of channels,
            ``dim``; empty for a U-Net.
    """
    return [module for module in model.body.modules() if isinstance(module, SwinTransformerBlock)]
