"""Read a few-shot adapter from its file; it is written as any adapter is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from baps.adapters.adapter_file import check_trained_for, read_with
from baps.errors import InputError
from baps.fseft.adapters import FewShotAdapter, build_adapter
from baps.fseft.models import PUBLISHED, OrganModel

_PUBLISHED_METHOD = 5
"""Version of the method since which published models are given the images and layers that they were trained with."""


_CHANGED_METHOD = {"bias": 6, "compacter": 6}
"""Version of the method since which an adapter of that name trains the parameters that it does now."""


def adapter_record(method: str, organ: str, decoder: bool, seed: int) -> dict[str, Any]:
    """Return what is needed to build an adapter of the same kind, as JSON.

    Args:
        method: name of the method.
        organ: the organ.
        decoder: whether the decoder is trained too.
        seed: seed of the random weights.

    Returns:
        The record.
    """
    return {"method": method, "organ": organ, "decoder": decoder, "seed": seed}


def read_organ_adapter(path: Path, model: OrganModel) -> tuple[FewShotAdapter, dict[str, Any]]:
    """Read an adapter onto the model's device.

    Args:
        path: the file.
        model: the organ model that the adapter was trained for.

    Returns:
        The adapter and its record.

    Raises:
        InputError: if the file is missing, broken or not a few-shot adapter, or was trained for another model, for
            what an earlier version made of a published one, or by what an earlier version made of its method.
    """

    def build(record: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> FewShotAdapter:
        about = record["adapter"]
        method, organ = about["method"], about["organ"]
        check_trained_for(record, model.name, model.sha256)
        if model.name in PUBLISHED and record.get("method", 0) < _PUBLISHED_METHOD:
            raise InputError(
                f"The adapter was trained with other features of {model.name}: this version gives the model the images "
                "and layers of its authors. Train again."
            )
        if record.get("method", 0) < _CHANGED_METHOD.get(method, 0):
            raise InputError(
                f"The adapter was trained by an earlier version's method {method}, which changed other parameters: "
                f"this version's is {method} as published. Train again."
            )
        adapter = build_adapter(method, model.network, organ, decoder=about["decoder"], seed=about["seed"])
        adapter.load_state_dict(state)
        return adapter.to(model.device).eval()

    return read_with(path, build)
