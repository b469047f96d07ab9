"""Training a part of the model's own weights."""

from __future__ import annotations

from torch import nn

from baps.fseft.adapters.tuned import TunedModel


def tune_layer_norms(tuned: TunedModel) -> None:
    """Affine-LN: scale and shift of every layer normalisation of the encoder (Basu et al., *Strong Baselines for
    Parameter Efficient Few-Shot Fine-Tuning*, AAAI 2024).
    """
    for part in tuned.model.encoder():
        for module in part.modules():
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(True)


def tune_biases(tuned: TunedModel) -> None:
    """Every bias of the encoder (Ben Zaken et al., *BitFit*, ACL 2022); the tables of relative position, which are
    called biases too, stay.
    """
    for part in tuned.model.encoder():
        for name, parameter in part.named_parameters():
            if name.rpartition(".")[2] == "bias":
                parameter.requires_grad_(True)


def tune_decoder(tuned: TunedModel) -> None:
    """The decoder, from the coarsest features up."""
    for part in tuned.model.decoder():
        part.requires_grad_(True)


def tune_all(tuned: TunedModel) -> None:
    """Everything: full fine-tuning."""
    tuned.requires_grad_(True)


def start_anew(tuned: TunedModel) -> None:
    """Everything, from random weights: what pre-training has to beat."""
    tuned.model.body = tuned.model.new_body()
    if tuned.model.head is not None:
        tuned.model.head.reset_parameters()
    tuned.requires_grad_(True)
