"""Build networks whose masks depend on every grey level, to compare preprocessing with."""

from __future__ import annotations

import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam

from baps.blackbox.loading import bundled_network

_GAIN = 10


def small_sam() -> Sam:
    """Load the bundled model, which is trained, as a plain network.

    Returns:
        The model, in eval mode; its input is 192 pixels wide.
    """
    return bundled_network()[0].eval()


def random_vit_b() -> Sam:
    """Build SAM ViT-B with random weights. Its logits are amplified, because untrained ones hardly differ.

    Returns:
        The model, in eval mode.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = sam_model_registry["vit_b"]()
    with torch.no_grad():
        for mlp in model.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.mul_(_GAIN)
    return model.eval()
