from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from baps.blackbox import RemoteSettings, load_black_box
from tests.support.hosts import BUNDLED, hosted
from tests.support.paths import ROOT


@pytest.mark.slow
def test_demo_with_a_remote_model(tmp_path: Path) -> None:
    """The demo runs from a copy of the project without the weights of the model."""
    copy = tmp_path / "project"
    skipped = shutil.ignore_patterns("bundled", "logs", "model", "__pycache__")
    shutil.copytree(ROOT / "apps", copy / "apps", ignore=skipped)
    out, environment = (
        tmp_path / "out",
        {**os.environ, "PYTHONPATH": str(copy / "apps" / "baps_app")},
    )
    program = "from baps.blackbox.loading import BUNDLED_WEIGHTS; print(BUNDLED_WEIGHTS, BUNDLED_WEIGHTS.exists())"
    weights = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert weights.stdout.split() == [str(copy / "apps/baps_app/baps/blackbox/bundled/bundled.safetensors"), "False"]
    with hosted(tmp_path, BUNDLED, "bundled") as host:
        address = host.addresses["grpc"]
        capabilities = load_black_box("remote", remote=RemoteSettings(address)).capabilities
        command = ["-c", "from baps.cli import main; main()", "demo", "--remote", address]
        command += ["--max-images", "600", "--out", str(out)]
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
        )
        assert done.returncode == 0, done.stdout + done.stderr + (out / "server.log").read_text()[-3000:]
    summary = json.loads((out / "summary.json").read_text())
    assert 0 < summary["black_box_images"] <= 600
    assert 0.2 < summary["zero_shot_dice"] < 1
    record = json.loads((out / "adapters" / "label-spleen" / "v0001" / "record.json").read_text())
    assert record["black_box"] == {
        "name": "bundled",
        "weights_sha256": capabilities.weights_sha256,
        "input_side": capabilities.input_size,
    }
