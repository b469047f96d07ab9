"""Read the adapter of a 3D black box from its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from baps.adapters.adapter_file import read_with
from baps.adapters.volumes.adapter import VolumeAdapter, volume_adapter_from_record
from baps.errors import InputError


def read_volume_adapter(path: Path) -> tuple[VolumeAdapter, dict[str, Any]]:
    """Read an adapter and its record; ``write_adapter`` writes them.

    Args:
        path: path of the file.

    Returns:
        The adapter and its record.

    Raises:
        InputError: if the file is missing, broken or not the adapter of a 3D black box.
    """

    def build(record: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> VolumeAdapter:
        if "width" not in record["adapter"]:
            raise InputError(f"{path} is not the adapter of a 3D black box.")
        adapter = volume_adapter_from_record(record["adapter"])
        adapter.load_state_dict(state)
        return adapter

    return read_with(path, build)
