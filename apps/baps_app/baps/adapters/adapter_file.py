"""Read and write an adapter as one safetensors file: the weights, and the record in the header."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from baps.adapters.adapter import Adapter, adapter_from_record
from baps.adapters.old_records import rename_record
from baps.errors import BapsError, InputError
from baps.utils.atomic_write import atomic_write

Built = TypeVar("Built")

_RUN_KEYS = ("seconds", "replayed_images")
"""Keys of the record that differ between runs with the same result. They are omitted, so that the files are equal."""


class HasStateDict(Protocol):
    """Anything that has weights to save."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Collect all weights.

        Returns:
            The tensors by name.
        """


def write_adapter(path: Path, adapter: HasStateDict, record: Mapping[str, Any]) -> None:
    """Write an adapter. An older file is replaced when the new one is complete.

    Args:
        path: path of the file; its folder is created if needed.
        adapter: the adapter, or another model with weights.
        record: JSON that describes how the adapter was made.

    Raises:
        BapsError: if the file cannot be written. An older file stays as it was.
    """
    header = {key: value for key, value in record.items() if key not in _RUN_KEYS}
    tensors = {key: value.contiguous() for key, value in adapter.state_dict().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            save_file(tensors, partial, {"record": json.dumps(header, allow_nan=False)})
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BapsError(
            f"The adapter could not be written to {path} ({reason}). Free some space or choose another place."
        ) from error


def read_adapter(path: Path) -> tuple[Adapter, dict[str, Any]]:
    """Read an adapter and its record.

    Args:
        path: path of the file.

    Returns:
        The adapter and its record.

    Raises:
        InputError: if the file is missing, broken or not an adapter.
        BapsError: if the frozen encoder cannot be loaded.
    """

    def build(record: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Adapter:
        if record.get("dimension") == 3:
            raise InputError(f"{path} is the adapter of a 3D black box, which segments whole volumes, not slices.")
        adapter = adapter_from_record(record["adapter"])
        adapter.load_state_dict(state)
        return adapter

    return read_with(path, build)


def read_with(
    path: Path, build: Callable[[dict[str, Any], dict[str, torch.Tensor]], Built]
) -> tuple[Built, dict[str, Any]]:
    """Read a file, and build an object from its record and weights.

    Args:
        path: path of the file.
        build: function of the record and the tensors by name.

    Returns:
        What ``build`` returned, and the record.

    Raises:
        InputError: if the file is missing or broken, or ``build`` fails on its content.
        BapsError: if ``build`` raises it.
    """
    if not path.is_file():
        raise InputError(f"There is no adapter file {path}. `baps adapt --out FILE` makes one.")
    try:
        with safe_open(path, "pt") as file:
            record = rename_record(json.loads(file.metadata()["record"]))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it is not a dict
        return build(record, tensors), record
    except BapsError:
        raise
    except Exception as error:  # Many types, depending on what is broken; each means that the file is unusable.
        raise InputError(
            f"{path} is not an adapter of this project, or it is broken ({type(error).__name__}). Adapt again."
        ) from error


def check_trained_for(
    record: Mapping[str, Any], model: str, weights_sha256: str, preprocessing: str = "canvas"
) -> None:
    """Check that an adapter was trained for the weights of a model.

    Args:
        record: record of the adapter.
        model: name of the model, for the error message.
        weights_sha256: SHA-256 of the model's weights.
        preprocessing: how the model prepares images, see ``Capabilities``. Organ models have only one way.

    Raises:
        InputError: if the adapter was trained for other weights, or for images that were preprocessed differently.
    """
    trained_for = record.get("black_box") or {}
    name, digest = trained_for.get("name", "an unknown model"), str(trained_for.get("weights_sha256", "unknown"))
    if digest != weights_sha256:
        raise InputError(
            f"The adapter was trained for {name} with weights {digest[:12]}..., not for {model} with "
            f"{weights_sha256[:12]}.... Name that model and its weights, or adapt again."
        )
    other = str(trained_for.get("preprocessing", "unknown"))
    if other != preprocessing:
        raise InputError(
            f"The adapter was trained for {name} with the preprocessing {other}, but {model} now uses {preprocessing}. "
            "Adapt again."
        )
