"""From the name of a method to an adapter."""

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
from baps.fseft.adapters.selective import start_anew, tune_all, tune_biases, tune_decoder, tune_layer_norms
from baps.fseft.adapters.spatial import SpatialAdapter
from baps.fseft.adapters.tuned import TunedModel
from baps.fseft.models import FoundationModel


@dataclass(frozen=True)
class Method:
    """A way to adapt.

    Attributes:
        build: makes the adapter of a model for an organ.
        rate: learning rate to begin with. As published: 1e-2 of the linear probe, 1e-4 of the spatial adapter, 1e-3 of
            LoRA; ours for the others.
        of_encoder: whether it changes the encoder alone, so that the decoder may be trained beside it.
        of_transformers: whether it needs a transformer.
        of_classes: whether it needs a model with classes of its own.
        points: voxels of a draw, for one that looks at each voxel alone; 0 where cubes are drawn.
    """

    build: Callable[[FoundationModel, str], FewShotAdapter]
    rate: float
    of_encoder: bool = False
    of_transformers: bool = False
    of_classes: bool = False
    points: int = 0


def _tuned(change: Callable[[TunedModel], None]) -> Callable[[FoundationModel, str], FewShotAdapter]:
    def build(model: FoundationModel, organ: str) -> FewShotAdapter:
        tuned = TunedModel(model, organ)
        change(tuned)
        return tuned

    return build


METHODS = {
    "linear_probe": Method(LinearProbe, 1e-2),
    "spatial": Method(SpatialAdapter, 1e-4),
    "spatial_pointwise": Method(partial(SpatialAdapter, width=1), 1e-4),
    "output": Method(lambda model, organ: OutputAdapter(model.classes, organ), 3e-3, of_classes=True),
    "landmarks": Method(LandmarkAdapter, 3e-3, points=3500),
    "lora": Method(_tuned(add_lora), 1e-3, of_encoder=True, of_transformers=True),
    "adaptformer": Method(_tuned(add_adaptformer), 1e-3, of_encoder=True, of_transformers=True),
    "compacter": Method(_tuned(add_compacter), 1e-3, of_encoder=True, of_transformers=True),
    "affine_ln": Method(_tuned(tune_layer_norms), 1e-3, of_encoder=True, of_transformers=True),
    "bias": Method(_tuned(tune_biases), 1e-3, of_encoder=True),
    "decoder": Method(_tuned(tune_decoder), 1e-4),
    "full": Method(_tuned(tune_all), 1e-4),
    "scratch": Method(_tuned(start_anew), 1e-4),
}
"""By name."""


def method_named(name: str) -> Method:
    """A method.

    Raises:
        InputError: if there is none of this name.
    """
    if name not in METHODS:
        raise InputError(f"There is no method {name!r}. Known ones: {', '.join(METHODS)}.")
    return METHODS[name]


def why_not(name: str, model: FoundationModel) -> str:
    """Why a method does not apply to a model (n/a in a table), as a sentence; "" if it does.

    Raises:
        InputError: if there is no such method.
    """
    method = method_named(name)
    if method.of_transformers and not transformer_blocks(model):
        return f"The method {name} changes transformer blocks, and this model has none. Use bias, full or spatial."
    if method.of_classes and not model.classes:
        return f"The method {name} reads the model's classes, and these weights have none. Use spatial or linear_probe."
    return ""


def build_adapter(
    name: str, model: FoundationModel, organ: str, *, decoder: bool = False, seed: int = 0
) -> FewShotAdapter:
    """An adapter, not yet trained.

    Where the model knows the organ it answers as the model does, but for ``scratch``.

    Args:
        name: one of ``METHODS``.
        model: left as it is; its weights are copied where they are changed.
        organ: one of the model's classes, or a new one.
        decoder: train the decoder too, beside a method that changes the encoder.
        seed: of random weights.

    Raises:
        InputError: if there is no such method, or it does not apply, see ``why_not``.
    """
    reason = why_not(name, model)
    if reason:
        raise InputError(reason)
    method = METHODS[name]
    if decoder and not method.of_encoder:
        raise InputError(f"The method {name} does not take the decoder beside it. Leave it away, or use decoder.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = method.build(model, organ)
    if decoder:
        assert isinstance(adapter, TunedModel)
        tune_decoder(adapter)
    return adapter
