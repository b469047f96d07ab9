"""The systemd unit is valid and starts the server of a checkout."""

from __future__ import annotations

import configparser
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from baps.site.settings import read_settings
from deploy.advisories import ROOT

UNIT, ENVIRONMENT = ROOT / "deploy" / "baps.service", ROOT / "deploy" / "baps.env"
needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


def _environment() -> dict[str, str]:
    lines = (line.strip() for line in ENVIRONMENT.read_text().splitlines())
    return dict(line.lstrip("#").split("=", 1) for line in lines if line and not line.startswith("# "))


def _analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True)  # noqa: S607


def _copy(folder: Path) -> Path:
    """Copy the unit with a program that exists on this machine, because systemd checks it."""
    (folder / "baps.service").write_text(UNIT.read_text().replace("/opt/baps/.venv/bin/baps", "/bin/true"))
    return folder / "baps.service"


@needs_systemd
def test_systemd_verifies_the_unit(tmp_path: Path) -> None:
    process = _analyze("verify", "--man=no", str(_copy(tmp_path)))
    messages = [line for line in process.stderr.splitlines() if "baps.service" in line]
    assert (process.returncode, messages) == (0, []), process.stderr
    wrong = _copy(tmp_path)
    wrong.write_text(wrong.read_text().replace("ProtectSystem=strict", "ProtectSystem=mostly"))
    assert "baps.service" in _analyze("verify", "--man=no", str(wrong)).stderr


@needs_systemd
def test_systemd_rates_the_unit_as_safe(tmp_path: Path) -> None:
    if "--offline" not in _analyze("--help").stdout:
        pytest.skip("this systemd-analyze does not judge units that are not loaded")
    # The threshold is exposure times 10: 20 is "OK", and a unit without protection has 96.
    process = _analyze("security", "--offline=true", "--threshold=20", str(_copy(tmp_path)))
    assert process.returncode == 0, process.stdout[-300:] + process.stderr


def test_unit_starts_the_server_of_a_checkout() -> None:
    parser = configparser.RawConfigParser(strict=False)
    parser.read_string(UNIT.read_text())
    service = parser["Service"]
    words = service["execstart"].split()
    assert words[:2] == ["/opt/baps/.venv/bin/baps", "serve"]
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert service["user"] == "baps"
    assert service["environmentfile"] == "/etc/baps/baps.env"
    source, target = service["bindpaths"].split(":")
    assert (source, target) == ("/var/log/baps", "/opt/baps/apps/baps_app/logs")
    assert (ROOT / "docs" / "how-to" / "deploy.md").is_file()


def test_environment_file_has_known_settings(tmp_path: Path) -> None:
    environment = _environment()
    assert {"STUDIES", "BAPS_USERS", "BAPS_OPENID", "BAPS_PACS_CREDENTIALS", "HOME"} <= environment.keys()
    settings = {name[5:].lower(): value for name, value in environment.items() if name.startswith("BAPS_")}
    (tmp_path / "site.json").write_text(json.dumps(settings))
    read_settings({"config": str(tmp_path / "site.json")}, {})  # An unknown setting is an error.
    assert read_settings({}, environment).requires_login
