"""Starts that would leave a server open: each is refused with a sentence."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from baps.cli import app
from baps.errors import InputError
from baps.site.roles import Role
from baps.site.server_command import serving_command
from baps.site.users import Users
from demo.server import free_port

pytestmark = pytest.mark.slow


def _started(studies: str, folder: Path, host: str = "127.0.0.1", stock: bool = False, **settings: str) -> str:
    """What a server says that stops at its start."""
    given = {"adapters": str(folder / "adapters"), **settings}
    command, environment = serving_command(studies, host, free_port(), given, stock)
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode != 0
    return process.stdout + process.stderr


@pytest.fixture
def users(tmp_path: Path) -> Path:
    Users(tmp_path / "users.json").add("anna", Role.ANNOTATOR)
    return tmp_path / "users.json"


def test_the_stock_server_does_not_open_a_pacs(tmp_path: Path) -> None:
    message = _started("http://127.0.0.1:9/dicom-web", tmp_path, stock=True)
    assert "would open the PACS to everybody" in message
    assert "allow_unprotected yes" in message


def test_the_stock_server_does_not_pretend_to_know_users(tmp_path: Path, users: Path) -> None:
    assert "stock server lets everybody in" in _started(str(tmp_path), tmp_path, stock=True, users=str(users))


def test_the_application_itself_does_not_listen_wide_without_users(tmp_path: Path) -> None:
    """Started by MONAI Label's own command, past ``baps serve``."""
    message = _started(str(tmp_path), tmp_path, host="0.0.0.0")  # noqa: S104
    assert "let anyone in" in message
    assert "baps users add NAME" in message
    assert "Uvicorn running" not in message


def test_every_page_of_the_web_is_not_let_in_without_users(tmp_path: Path) -> None:
    assert "cors_origins=*" in _started(str(tmp_path), tmp_path, cors_origins="*")


def test_users_that_others_may_read_are_no_users(tmp_path: Path, users: Path) -> None:
    users.chmod(0o644)
    assert "chmod 600" in _started(str(tmp_path), tmp_path, users=str(users))


def test_baps_serve_says_it_before(tmp_path: Path, users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("os.execve", lambda program, command, environment: started.append(command))
    wide = ["serve", str(tmp_path), "--host", "0.0.0.0", "--port", str(free_port())]  # noqa: S104
    with pytest.raises(InputError, match="baps users add NAME"):
        CliRunner().invoke(app, wide, catch_exceptions=False)
    assert not started
    CliRunner().invoke(app, [*wide, "--users", str(users)], catch_exceptions=False)
    assert started[0][started[0].index("--host") + 1] == "0.0.0.0"  # noqa: S104
