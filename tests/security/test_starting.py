"""Starts that would leave a server unprotected are refused with a sentence."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from baps.cli import app
from baps.demo.server import free_port
from baps.errors import InputError
from baps.site.roles import Role
from baps.site.server_command import serving_command
from baps.site.users import Users

pytestmark = pytest.mark.slow


def _failed_start(studies: str, folder: Path, host: str = "127.0.0.1", stock: bool = False, **settings: str) -> str:
    """Start a server that must refuse; return its output."""
    given = {"adapters": str(folder / "adapters"), **settings}
    command, environment = serving_command(studies, host, free_port(), given, stock)
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode != 0
    return process.stdout + process.stderr


@pytest.fixture
def users(tmp_path: Path) -> Path:
    Users(tmp_path / "users.json").add("anna", Role.ANNOTATOR)
    return tmp_path / "users.json"


def test_stock_server_refuses_a_pacs(tmp_path: Path) -> None:
    message = _failed_start("http://127.0.0.1:9/dicom-web", tmp_path, stock=True)
    assert "would open the PACS to anyone" in message
    assert "allow_unprotected yes" in message


def test_stock_server_refuses_users(tmp_path: Path, users: Path) -> None:
    assert "stock server lets anyone in" in _failed_start(str(tmp_path), tmp_path, stock=True, users=str(users))


def test_application_refuses_public_address_without_users(tmp_path: Path) -> None:
    """Start it with MONAI Label's own command instead of ``baps serve``."""
    message = _failed_start(str(tmp_path), tmp_path, host="0.0.0.0")  # noqa: S104
    assert "let anyone in" in message
    assert "baps users add NAME" in message
    assert "Uvicorn running" not in message


def test_any_origin_is_refused_without_users(tmp_path: Path) -> None:
    assert "cors_origins=*" in _failed_start(str(tmp_path), tmp_path, cors_origins="*")


def test_readable_users_file_is_refused(tmp_path: Path, users: Path) -> None:
    users.chmod(0o644)
    assert "chmod 600" in _failed_start(str(tmp_path), tmp_path, users=str(users))


def test_baps_serve_refuses_first(tmp_path: Path, users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("os.execve", lambda program, command, environment: started.append(command))
    wide = ["serve", str(tmp_path), "--host", "0.0.0.0", "--port", str(free_port())]  # noqa: S104
    with pytest.raises(InputError, match="baps users add NAME"):
        CliRunner().invoke(app, wide, catch_exceptions=False)
    assert not started
    CliRunner().invoke(app, [*wide, "--users", str(users)], catch_exceptions=False)
    assert started[0][started[0].index("--host") + 1] == "0.0.0.0"  # noqa: S104
