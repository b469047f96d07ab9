"""The command ``baps``. Each command has a file, and imports heavy modules only when it runs."""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import version
from typing import Annotated

from baps.cli import safe_path as _safe_path  # noqa: F401

# isort: split
import typer

from baps.cli import adapters, audit, blackbox, drafts, labels, organs, users
from baps.cli.adapt import adapt
from baps.cli.console import Console
from baps.cli.convert import convert
from baps.cli.demo import demo
from baps.cli.doctor import doctor
from baps.cli.evaluate import evaluate
from baps.cli.old_options import CommandWithOldOptions
from baps.cli.segment import segment
from baps.cli.serve import serve
from baps.errors import BapsError
from baps.utils.deprecation import OldNameWarning

app = typer.Typer(no_args_is_help=True)
app.command()(serve)
app.command()(demo)
app.command()(doctor)
app.command(cls=CommandWithOldOptions)(segment)
app.command()(convert)
app.command(cls=CommandWithOldOptions)(adapt)
app.command()(evaluate)
app.add_typer(adapters.app, name="adapters")
app.add_typer(audit.app, name="audit")
app.add_typer(blackbox.app, name="blackbox")
app.add_typer(labels.app, name="labels")
app.add_typer(drafts.app, name="drafts")
app.add_typer(users.app, name="users")
app.add_typer(organs.app, name="organs")


def _print_version(value: bool) -> None:
    if value:
        print(version("baps-monailabel"))
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Promptable segmentation that adapts to your images."""


def main() -> None:
    """Run the command. Expected errors and warnings are one sentence each."""
    if not sys.warnoptions:  # Warnings of libraries are for programmers. python -W default shows them.
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", OldNameWarning)
        warnings.formatwarning = lambda message, *_, **__: f"{message}\n"
    try:
        app()
    except BapsError as error:
        Console(stderr=True, soft_wrap=True).print(str(error), style="red", markup=False, highlight=False)
        raise SystemExit(1) from None
