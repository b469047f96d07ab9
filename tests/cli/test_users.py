from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from baps.cli import app
from baps.errors import BapsError, InputError
from baps.site.users import Users


def _run(*words: object) -> str:
    done = CliRunner().invoke(app, ["users", *map(str, words)], catch_exceptions=False)
    return done.output if done.exit_code == 0 else f"exit {done.exit_code}: {done.output}"


def test_add_renew_and_remove(tmp_path: Path) -> None:
    file = tmp_path / "users.json"
    token = _run("add", "anna", "--role", "trainer", "--file", file, "--days", 30).split()[-1]
    user = Users(file).find(token)
    assert user is not None
    assert user.role.value == "trainer"
    listed = _run("list", "--file", file)
    assert ("anna" in listed, "trainer" in listed, f"{user.expires:%Y-%m-%d}" in listed) == (True, True, True)
    assert token not in listed
    renewed = _run("renew", "anna", "--file", file).split()[-1]
    assert Users(file).find(token) is None
    assert Users(file).find(renewed) is not None
    assert "removed" in _run("remove", "anna", "--file", file)
    assert Users(file).all() == {}


def test_default_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="Give the file of users"):
        _run("list")
    monkeypatch.setenv("BAPS_USERS", str(tmp_path / "users.json"))
    _run("add", "anna", "--role", "admin")
    assert "anna" in _run("list")


def test_errors(tmp_path: Path) -> None:
    assert _run("add", "anna", "--role", "chief", "--file", tmp_path / "u.json").startswith("exit 2")
    with pytest.raises(BapsError, match="not a valid user name"):
        _run("add", "a b", "--role", "admin", "--file", tmp_path / "u.json")


def test_change_the_role(tmp_path: Path) -> None:
    file = tmp_path / "users.json"
    token = _run("add", "anna", "--role", "annotator", "--file", file).split()[-1]
    assert "anna is trainer now." in _run("role", "anna", "trainer", "--file", file)
    user = Users(file).find(token)
    assert user is not None
    assert user.role.value == "trainer"
    assert "exit 2" in _run("role", "anna", "king", "--file", file)
