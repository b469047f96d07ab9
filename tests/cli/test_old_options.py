from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from baps.cli.old_options import CommandWithOldOptions
from baps.errors import InputError
from baps.utils.deprecation import OldNameWarning

Run = Callable[..., list[Any]]


@pytest.fixture
def run() -> Run:
    """Return a function that runs a command with one renamed option, and returns what the command read."""
    app, read = typer.Typer(), []

    @app.command(cls=CommandWithOldOptions)
    def command(words: list[str] = typer.Argument(default=[]), learning_rate: float = 0.5) -> None:
        read[:] = [learning_rate, words]

    def run(*words: str) -> list[Any]:
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return read

    return run


@pytest.mark.parametrize("words", [("--rate", "0.25"), ("--rate=0.25",)])
def test_an_old_option_is_read_with_a_warning(run: Run, words: tuple[str, ...]) -> None:
    with pytest.warns(OldNameWarning, match="--rate is now called --learning-rate") as warned:
        assert run(*words) == [0.25, []]
    assert len(warned) == 1


def test_arguments_and_options_of_other_commands_stay(run: Run, recwarn: pytest.WarningsRecorder) -> None:
    assert run("--learning-rate", "0.25", "--", "--rate", "--corrected") == [0.25, ["--rate", "--corrected"]]
    assert not [one for one in recwarn if issubclass(one.category, OldNameWarning)]
    with pytest.raises(AssertionError, match="No such option"):
        run("--corrected", "1")  # Another command's.


def test_both_names_at_once_are_an_error(run: Run) -> None:
    with pytest.raises(InputError, match="--rate is the old name of --learning-rate"):
        run("--rate", "1", "--learning-rate", "2")
