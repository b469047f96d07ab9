"""An adapter as one file: its weights, and its record in the header."""

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

_OF_THE_RUN = ("seconds", "replayed_images")
"""What differs between two runs that come to the same adapter; without it, their files are equal."""


class HasState(Protocol):
    """Anything whose weights can be kept."""

    def state(self) -> dict[str, torch.Tensor]:
        """All of them, by name."""


def write_adapter(path: Path, adapter: HasState, record: Mapping[str, Any]) -> None:
    """Write an adapter; an older file is replaced when the new one is whole.

    Raises:
        BapsError: if it cannot be written; an older file is as it was.
    """
    header = {key: value for key, value in record.items() if key not in _OF_THE_RUN}
    tensors = {key: value.contiguous() for key, value in adapter.state().items()}
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
    """Read an adapter back, and its record.

    Raises:
        InputError: if the file is missing, broken or no adapter.
        BapsError: if its frozen encoder cannot be loaded.
    """

    def build(record: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Adapter:
        adapter = adapter_from_record(record["adapter"])
        adapter.load_state(state)
        return adapter

    return read_built(path, build)


def read_built(
    path: Path, build: Callable[[dict[str, Any], dict[str, torch.Tensor]], Built]
) -> tuple[Built, dict[str, Any]]:
    """What ``build`` makes of the record and the weights in a file, and the record.

    Raises:
        InputError: if the file is missing or broken, or ``build`` cannot make anything of it.
        BapsError: as ``build``.
    """
    if not path.is_file():
        raise InputError(f"There is no adapter file {path}. `baps adapt --out FILE` makes one.")
    try:
        with safe_open(path, "pt") as file:
            record = rename_record(json.loads(file.metadata()["record"]))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it is no dict
        return build(record, tensors), record
    except BapsError:
        raise
    except Exception as error:  # Many kinds, by what is broken; each means that nothing can be made of it.
        raise InputError(
            f"{path} is no adapter of this project, or it is broken ({type(error).__name__}). Adapt again."
        ) from error


def check_fits(record: Mapping[str, Any], model: str, weights_sha256: str) -> None:
    """An adapter serves only the weights that it was trained for.

    Raises:
        InputError: if the model has others.
    """
    made_for = record.get("black_box") or {}
    name, digest = made_for.get("name", "an unknown model"), str(made_for.get("weights_sha256", "unknown"))
    if digest != weights_sha256:
        raise InputError(
            f"The adapter was trained for {name} with weights {digest[:12]}..., not for {model} with "
            f"{weights_sha256[:12]}.... Name that model and its weights, or adapt again."
        )
