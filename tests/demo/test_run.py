from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from typer.testing import CliRunner

from baps.cli import app
from baps.errors import InputError


@pytest.mark.slow
def test_demo_leaves_its_server_running_until_it_is_interrupted(tmp_path: Path) -> None:
    out, output = tmp_path / "out", tmp_path / "output.txt"
    program = "import rich; rich.reconfigure(width=300); from baps.cli import main; main()"
    command = [sys.executable, "-c", program, "demo", "--seed", "3", "--out", out, "--keep"]
    with output.open("w") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as child:
        try:
            deadline = time.monotonic() + 600
            while not (found := re.search(r"still running\. Open\s+(\S+)", output.read_text())):
                assert child.poll() is None, output.read_text()
                assert time.monotonic() < deadline, output.read_text()
                time.sleep(1)
            page = requests.get(found.group(1), headers={"Accept": "text/html"}, timeout=60)
            assert page.ok
            assert "published" in page.text
        finally:
            child.send_signal(signal.SIGINT)
    assert child.returncode == 0, output.read_text()
    with pytest.raises(requests.ConnectionError):
        requests.get(found.group(1), timeout=5)
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
