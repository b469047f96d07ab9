from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from typer.testing import CliRunner

from baps.cli import app
from baps.demo.server import free_port
from baps.errors import InputError


class ExecutedError(Exception):
    """Raised in place of ``os.execve``."""


@pytest.fixture(autouse=True)
def _replace_execve(monkeypatch: pytest.MonkeyPatch) -> None:
    def execute(program: str, command: list[str], environment: dict[str, str]) -> None:
        raise ExecutedError(program, command, environment)

    monkeypatch.setattr("os.execve", execute)


def _serve(*words: str) -> tuple[list[str], dict[str, str]]:
    """Run ``baps serve`` up to ``os.execve``, and return the command line and the environment."""
    with pytest.raises(ExecutedError) as caught:
        CliRunner().invoke(app, ["serve", *words], catch_exceptions=False)
    program, command, environment = caught.value.args
    assert program == command[0]
    return command, environment


def _confs(command: list[str]) -> dict[str, str]:
    return {command[n + 1]: command[n + 2] for n, word in enumerate(command) if word == "--conf"}


def test_options_reach_the_server(tmp_path: Path) -> None:
    weights = tmp_path / "sam.pth"
    weights.touch()
    config = tmp_path / "site.json"
    config.write_text("{}")
    port = str(free_port())
    options = {
        "labels": "spleen=1,liver=6",
        "black_box": "sam",
        "weights": str(weights),
        "weights_sha256": "ab",
        "device": "cpu",
        "remote": "http://h/m",
        "adapters": str(tmp_path / "adapters"),
        "cache_mb": "64",
        "config": str(config),
    }
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    command, environment = _serve(str(tmp_path), "--port", port, *words)
    assert _confs(command) == options
    assert command[command.index("--studies") + 1] == str(tmp_path)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == port
    assert command[command.index("--uvicorn_app") + 1] == "baps.server.asgi:app"
    assert environment["MONAI_LABEL_TRACKING_ENABLED"] == "false"


def test_empty_options_count_as_missing(tmp_path: Path) -> None:
    names = ("labels", "black-box", "weights", "remote", "adapters", "config")
    empty = [word for name in names for word in (f"--{name}", "")]
    command, _ = _serve(str(tmp_path), "--port", str(free_port()), *empty)
    assert _confs(command) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--black-box", "medsam2"), "medsam2"),
        (("--black-box", "remote"), "remote needs an address"),
        (("--black-box", "remote", "--remote", "http://me:hush@h/m"), "BAPS_REMOTE_TOKEN"),
        (("--weights", "absent.pth"), "absent.pth does not exist"),
        (("--labels", "spleen=0"), "spleen"),
        (("--host", "no.such.host.invalid"), "no.such.host.invalid"),
    ],
)
def test_invalid_settings_are_refused_before_the_server_starts(
    tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        CliRunner().invoke(app, ["serve", str(tmp_path), *words], catch_exceptions=False)


def test_missing_studies_are_not_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent"):
        CliRunner().invoke(app, ["serve", str(tmp_path / "absent")], catch_exceptions=False)
    assert not (tmp_path / "absent").exists()


@pytest.mark.slow
def test_the_server_gets_the_signal(tmp_path: Path) -> None:
    port = free_port()
    program = "from baps.cli import main; main()"
    words = ["serve", str(tmp_path), "--port", str(port), "--labels", "spleen", "--adapters", str(tmp_path / "a")]
    log = (tmp_path / "log").open("w")
    child = subprocess.Popen([sys.executable, "-c", program, *words], stdout=log, stderr=log, env=dict(os.environ))
    try:
        info = None
        while info is None and child.poll() is None:
            try:
                info = requests.get(f"http://127.0.0.1:{port}/info/", timeout=60).json()
            except requests.ConnectionError:
                time.sleep(0.5)
        assert info is not None, (tmp_path / "log").read_text()
        assert info["labels"] == ["spleen"]
        child.send_signal(signal.SIGTERM)
        child.wait(60)
        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://127.0.0.1:{port}/info/", timeout=10)
    finally:
        child.kill()
        log.close()
