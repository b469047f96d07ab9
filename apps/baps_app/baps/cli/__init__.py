"""The command ``baps``. One file a command; what is heavy is imported when a command runs."""

from __future__ import annotations

import sys
import warnings

from . import here as _here  # noqa: F401

# isort: split
import typer

from ..errors import BapsError
from . import adapters, audit, blackbox, labels, organs, users
from .adapt import adapt
from .console import Console
from .convert import convert
from .doctor import doctor
from .evaluate import evaluate
from .segment import segment
from .serve import serve

app = typer.Typer(no_args_is_help=True, help="Promptable segmentation that adapts to your images.")
app.command()(serve)
app.command()(doctor)
app.command()(segment)
app.command()(convert)
app.command()(adapt)
app.command()(evaluate)
app.add_typer(adapters.app, name="adapters")
app.add_typer(audit.app, name="audit")
app.add_typer(blackbox.app, name="blackbox")
app.add_typer(labels.app, name="labels")
app.add_typer(users.app, name="users")
app.add_typer(organs.app, name="organs")


def main() -> None:
    """Run the command; errors that were foreseen are one sentence."""
    if not sys.warnoptions:  # What libraries say to programmers; python -W default shows it.
        warnings.simplefilter("ignore")
    try:
        app()
    except BapsError as error:
        Console(stderr=True, soft_wrap=True).print(str(error), style="red", markup=False, highlight=False)
        raise SystemExit(1) from None
