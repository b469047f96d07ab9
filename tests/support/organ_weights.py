"""A small organ model with random weights, in the format of the bundled one."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from baps.fseft.models import build_swin_unetr


def small_organ_model(folder: Path) -> Path:
    """Write its weights; it knows the spleen, works on voxels of 6 mm, and takes a second or two."""
    weights = folder / "organs.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_swin_unetr(("spleen",), 12, 4)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, weights)
    record = {"classes": ["spleen"], "features": 12, "window": 4, "spacing": 6.0, "side": 64}
    weights.with_suffix(".json").write_text(json.dumps(record))
    return weights
