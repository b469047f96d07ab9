from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from baps.blackbox.bundled_model import build_bundled_model
from tools.pretraining.blackbox.bundled import train


@pytest.mark.slow
def test_short_run_writes_valid_weights_and_resumes(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / "a.jpg")
    (tmp_path / "labels" / "a.txt").write_text("0 0.2 0.2 0.8 0.2 0.8 0.8 0.2 0.8\n")
    out, checkpoint = tmp_path / "out.safetensors", tmp_path / "run" / "checkpoint.pt"
    done = []
    for images in (16, 32):
        train(tmp_path, out, checkpoint, images=images, decay=16, size=64)
        state = load_file(out)
        build_bundled_model(64).load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
        )
        assert all(bool(torch.isfinite(value).all()) for value in state.values())
        done.append(torch.load(checkpoint, weights_only=True)["done"])
    assert done == [16, 32]
