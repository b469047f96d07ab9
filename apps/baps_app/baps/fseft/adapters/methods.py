"""Build adapters by the name of their method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from baps.errors import InputError
from baps.fseft.adapters.adapter import FewShotAdapter
from baps.fseft.adapters.adaptformer import add_adaptformer
from baps.fseft.adapters.blocks import transformer_blocks
from baps.fseft.adapters.compacter import add_compacter
from baps.fseft.adapters.landmarks import LandmarkAdapter
from baps.fseft.adapters.linear_probe import LinearProbe
from baps.fseft.adapters.lora import add_lora
from baps.fseft.adapters.output import OutputAdapter
from baps.fseft.adapters.selective import reinitialise, tune_all, tune_biases, tune_decoder, tune_layer_norms
from baps.fseft.adapters.spatial import SpatialAdapter
from baps.fseft.adapters.tuned import TunedModel
from baps.fseft.models import FoundationModel


@dataclass(frozen=True)
class Method:
    """A method of adaptation.

    Attributes:
        build: builds the adapter of a model for an organ.
        rate: initial learning rate; as published, except for ``output`` and ``landmarks``.
        tunes_encoder: whether it changes the encoder only, so that the decoder may be trained too.
        needs_transformer: whether it needs a transformer.
        needs_classes: whether it needs a model with classes.
        points: number of voxels per draw, for adapters that classify each voxel independently; 0 to draw cubes.
    """

    build: Callable[[FoundationModel, str], FewShotAdapter]
    rate: float
    tunes_encoder: bool = False
    needs_transformer: bool = False
    needs_classes: bool = False
    points: int = 0


def _tuned_builder(change: Callable[[TunedModel], None]) -> Callable[[FoundationModel, str], FewShotAdapter]:
    def build(model: FoundationModel, organ: str) -> FewShotAdapter:
        tuned = TunedModel(model, organ)
        change(tuned)
        return tuned

    return build


DECODER_RATE = 1e-4
"""Initial learning rate of every method if the decoder is trained too, as published."""

METHODS = {
    "linear_probe": Method(LinearProbe, 1e-2),
    "spatial": Method(SpatialAdapter, 1e-4),
    "spatial_pointwise": Method(partial(SpatialAdapter, width=1), 1e-4),
    "output": Method(lambda model, organ: OutputAdapter(model.classes, organ), 3e-3, needs_classes=True),
    "landmarks": Method(LandmarkAdapter, 3e-3, points=3500),
    "lora": Method(_tuned_builder(add_lora), 1e-3, tunes_encoder=True, needs_transformer=True),
    "adaptformer": Method(_tuned_builder(add_adaptformer), 1e-2, tunes_encoder=True, needs_transformer=True),
    "compacter": Method(_tuned_builder(add_compacter), 1e-2, tunes_encoder=True, needs_transformer=True),
    "affine_ln": Method(_tuned_builder(tune_layer_norms), 1e-2, tunes_encoder=True, needs_transformer=True),
    "bias": Method(_tuned_builder(tune_biases), 1e-2, tunes_encoder=True),
    "decoder": Method(_tuned_builder(tune_decoder), DECODER_RATE),
    "full": Method(_tuned_builder(tune_all), 1e-4),
    "scratch": Method(_tuned_builder(reinitialise), 1e-4),
}
"""Methods by name."""


def get_method(name: str) -> Method:
    """Return a method by name.

    Args:
        name: one of ``METHODS``.

    Returns:
        The method.

    Raises:
        InputError: if there is no method of this name.
    """
    if name not in METHODS:
        raise InputError(f"There is no method {name!r}. Known ones: {', '.join(METHODS)}.")
    return METHODS[name]


def unsupported_reason(name: str, model: FoundationModel) -> str:
    """Explain why a method does not apply to a model (n/a in a table).

    Args:
        name: one of ``METHODS``.
        model: the foundation model.

    Returns:
        A sentence, or "" if the method applies.

    Raises:
        InputError: if there is no method of this name.
    """
    method = get_method(name)
    if method.needs_transformer and not transformer_blocks(model):
        return f"The method {name} changes transformer blocks, and this model has none. Use bias, full or spatial."
    if method.needs_classes and not model.classes:
        return f"The method {name} reads the model's classes, and these weights have none. Use spatial or linear_probe."
    return ""


def build_adapter(
    name: str, model: FoundationModel, organ: str, *, decoder: bool = False, seed: int = 0
) -> FewShotAdapter:
    """Build an untrained adapter.

    If the model knows the organ, the adapter's output is the model's own, except for ``scratch``.

    Args:
        name: one of ``METHODS``.
        model: the foundation model; it is not changed, and weights are copied where an adapter changes them.
        organ: one of the model's classes, or a new one.
        decoder: train the decoder too, in addition to a method that changes the encoder.
        seed: seed of the random weights.

    Returns:
        The adapter, on the CPU unless it copies the model.

    Raises:
        InputError: if there is no such method, or it does not apply, see ``unsupported_reason``.
    """
    reason = unsupported_reason(name, model)
    if reason:
        raise InputError(reason)
    method = METHODS[name]
    if decoder and not method.tunes_encoder:
        raise InputError(
            f"The method {name} cannot train the decoder in addition. Omit the decoder, or use the method decoder."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = method.build(model, organ)
    if decoder:
        assert isinstance(adapter, TunedModel)
        tune_decoder(adapter)
    return adapter
