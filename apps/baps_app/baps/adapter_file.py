"""An adapter as one file: its weights, and its record in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .adapter import Adapter, adapter_from_record
from .blackbox import Capabilities
from .errors import BapsError, InputError
from .replacing import replacing

_OF_THE_RUN = ("seconds", "recalled_images")
"""What differs between two runs that come to the same adapter; without it, their files are equal."""


def write_adapter(path: Path, adapter: Adapter, record: Mapping[str, Any]) -> None:
    """Write an adapter; an older file is replaced when the new one is whole.

    Raises:
        BapsError: if it cannot be written; an older file is as it was.
    """
    header = {key: value for key, value in record.items() if key not in _OF_THE_RUN}
    tensors = {key: value.contiguous() for key, value in adapter.state().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
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
    if not path.is_file():
        raise InputError(f"There is no adapter file {path}. `baps adapt --out FILE` makes one.")
    try:
        with safe_open(path, "pt") as file:
            record: dict[str, Any] = json.loads(file.metadata()["record"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it is no dict
        adapter = adapter_from_record(record["adapter"])
        adapter.load_state(tensors)
    except BapsError:
        raise
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path} is no adapter of this project, or it is broken ({type(error).__name__}). Adapt again."
        ) from error
    return adapter, record


def check_fits(record: Mapping[str, Any], able: Capabilities) -> None:
    """An adapter serves only the weights that it was trained for.

    Raises:
        InputError: if the black box has others.
    """
    made_for = record.get("black_box") or {}
    name, digest = made_for.get("name", "an unknown model"), str(made_for.get("weights_sha256", "unknown"))
    if digest != able.weights_sha256:
        raise InputError(
            f"The adapter was trained for {name} with weights {digest[:12]}..., not for {able.name} with "
            f"{able.weights_sha256[:12]}.... Name that black box and its weights, or adapt again."
        )
