"""Checks of the container files, which could not be run here: they name existing files and grant few rights."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from baps.cli import app
from baps.site.settings import read_settings
from deploy.advisories import ROOT

CONTAINER, COMPOSE = ROOT / "deploy" / "Containerfile", ROOT / "deploy" / "compose.yaml"


def _lines(keyword: str) -> list[str]:
    """Return the instructions with a keyword, one per line."""
    text = re.sub(r"\\\n", " ", CONTAINER.read_text())
    return [line.removeprefix(f"{keyword} ") for line in text.splitlines() if line.startswith(f"{keyword} ")]


def _composed() -> dict[str, Any]:
    composed: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return composed


def test_files_state_that_they_were_not_run() -> None:
    for file in (CONTAINER, COMPOSE):
        assert file.read_text().startswith("# NOT RUN by this project")


def test_copied_files_exist() -> None:
    copied = [word for line in _lines("COPY") for word in line.split()[:-1]]
    assert {"constraints.txt", "setup.cfg", "apps"} <= set(copied)
    assert all((ROOT / word).exists() for word in copied)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ignored[0] == "*"
    assert {word.removeprefix("!") for word in ignored if word.startswith("!")} == set(copied)


def test_container_runs_without_root_and_secrets() -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", _lines("USER")[-1])
    text = CONTAINER.read_text()
    assert text.index("\nUSER ") < text.index("\nENTRYPOINT ")
    assert "\nHEALTHCHECK " in text
    assert not re.search(r"(?i)password|token=|secret", text)


def test_entrypoint_uses_known_options() -> None:
    words = json.loads(_lines("ENTRYPOINT")[0])
    help_text = (
        CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}).output
    )
    assert words[:2] == ["baps", "serve"]
    assert all(word in help_text for word in words if word.startswith("--"))


def test_compose_names_existing_files_and_known_settings() -> None:
    composed = _composed()
    baps_service, pacs = composed["services"]["baps"], composed["services"]["orthanc"]
    build = baps_service["build"]
    assert (COMPOSE.parent / build["context"] / build["dockerfile"]).resolve() == CONTAINER
    for service in (baps_service, pacs):
        for volume in service["volumes"]:
            source = volume.replace(":?", "").split(":")[0]
            assert source.startswith("${") or source in composed["volumes"] or (COMPOSE.parent / source).is_file(), (
                volume
            )
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service
    assert baps_service["read_only"] is True
    settings = {name: value for name, value in baps_service["environment"].items() if name.startswith("BAPS_")}
    site = read_settings({}, settings)
    assert site.requires_login
    assert {f"BAPS_{name.upper()}" for name in vars(site)} >= settings.keys()


def test_ports_are_published_to_this_machine_only() -> None:
    services = _composed()["services"]
    assert services["baps"]["ports"] == ["127.0.0.1:8000:8000"]
    assert not [port for port in services["orthanc"]["ports"] if "8042" in port]


def test_writable_folders_are_volumes() -> None:
    baps_service = _composed()["services"]["baps"]
    writable = {volume.split(":")[1] for volume in baps_service["volumes"] if not volume.startswith("$")}
    writable |= {mount.split(":")[0] for mount in baps_service["tmpfs"]}
    assert writable == {"/var/lib/baps", "/opt/baps/apps/baps_app/logs", "/tmp"}  # noqa: S108
    written = dict(pair.split("=") for line in _lines("ENV") for pair in line.split())
    for name in ("HOME", "BAPS_ADAPTERS", "MONAI_LABEL_DATASTORE_CACHE_PATH"):
        assert written[name].startswith("/var/lib/baps")


def test_trusted_proxy_is_the_gateway_of_the_network() -> None:
    composed = _composed()
    (network,) = composed["networks"]["inside"]["ipam"]["config"]
    assert composed["services"]["baps"]["environment"]["FORWARDED_ALLOW_IPS"] == network["gateway"]


def test_orthanc_requires_a_login() -> None:
    settings = json.loads((COMPOSE.parent / "orthanc.json").read_text())
    assert settings["AuthenticationEnabled"] is True
    assert not settings["DicomAlwaysAllowStore"]
    assert "RegisteredUsers" not in settings
    assert _composed()["services"]["baps"]["command"][0].endswith(settings["DicomWeb"]["Root"].rstrip("/"))


def test_hadolint_reports_nothing() -> None:
    hadolint = shutil.which("hadolint") or ROOT / ".venv-tools" / "bin" / "hadolint"
    if not shutil.which(str(hadolint)):
        pytest.skip("hadolint is not installed")
    process = subprocess.run([str(hadolint), str(CONTAINER)], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout
