"""Train a part of the model's own weights."""

from __future__ import annotations

from torch import nn

from baps.fseft.adapters.blocks import transformer_blocks
from baps.fseft.adapters.tuned import TunedModel


def tune_layer_norms(tuned: TunedModel) -> None:
    """Make scale and shift of every layer normalisation of the encoder trainable (Affine-LN).

    Basu et al., *Strong Baselines for Parameter Efficient Few-Shot Fine-Tuning*, AAAI 2024.

    Args:
        tuned: the copy of the foundation model, changed in place.
    """
    for part in tuned.model.encoder():
        for module in part.modules():
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(True)


def tune_biases(tuned: TunedModel) -> None:
    """Make the biases of the encoder trainable (Ben Zaken et al., *BitFit*, ACL 2022).

    As published, these are in a transformer the biases of attention and perceptron and the tables of relative position,
    but not the shifts of normalisations; in a U-Net they are all biases.

    Args:
        tuned: the copy of the foundation model, changed in place.
    """
    of_blocks = [part for block in transformer_blocks(tuned.model) for part in (block.attn, block.mlp)]
    for part in of_blocks or tuned.model.encoder():
        for name, parameter in part.named_parameters():
            if "bias" in name.rpartition(".")[2]:
                parameter.requires_grad_(True)


def tune_decoder(tuned: TunedModel) -> None:
    """Make the decoder trainable, from the coarsest features up.

    Args:
        tuned: the copy of the foundation model, changed in place.
    """
    for part in tuned.model.decoder():
        part.requires_grad_(True)


def tune_all(tuned: TunedModel) -> None:
    """Make everything trainable: full fine-tuning.

    Args:
        tuned: the copy of the foundation model, changed in place.
    """
    tuned.requires_grad_(True)


def reinitialise(tuned: TunedModel) -> None:
    """Make everything trainable from random weights: the baseline without pre-training.

    Args:
        tuned: the copy of the foundation model, changed in place.
    """
    tuned.model.body = tuned.model.new_body()
    if tuned.model.head is not None:
        tuned.model.head.reset_parameters()
    tuned.requires_grad_(True)
