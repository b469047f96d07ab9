from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from baps.cli import app
from baps.errors import InputError


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", "from baps.cli import main; main()", "demo", "--seed", "3", "--out", out],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["labels_saved"] == 8
    assert summary["adapter_version"] == "v0001"
    assert 0 < summary["black_box_images"] <= 2000
    assert not set(summary["trained_on"]) & set(summary["measured_on"])
    assert summary["adapted_dice"] - summary["zero_shot_dice"] >= 0.04, summary
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1 + len(summary["measured_on"])
    text = re.sub('"data:[^"]*"', "", page.replace("http-equiv", ""))  # A picture may contain any letters.
    assert "http" not in text  # Nothing is loaded from other hosts.


def test_other_files_are_not_removed(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    with pytest.raises(InputError, match=r"studies is not from a demo.*--out"):
        CliRunner().invoke(app, ["demo", "--out", str(tmp_path)], catch_exceptions=False)
    assert (tmp_path / "studies").is_dir()
