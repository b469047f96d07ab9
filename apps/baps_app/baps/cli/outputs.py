"""Files that commands write: adapters and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from baps.errors import BapsError, InputError

AdapterFile = Annotated[Path, typer.Option(metavar="FILE", help="Where the adapter goes.")]
FiguresFile = Annotated[Path, typer.Option("--json", metavar="FILE", help="Where the figures go.")]


def make_room(adapter: Path) -> None:
    """Make the folder of an adapter file, before anything is computed for it.

    Raises:
        InputError: if it cannot be made, or the file is a folder.
    """
    if adapter.is_dir():
        raise InputError(f"{adapter} is a folder. Give --out the name of a file.")
    try:
        adapter.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        said = f"The folder {adapter.parent} cannot be made ({error.strerror}). Give another --out."
        raise InputError(said) from error


def check_figures_file(file: Path) -> None:
    """Before anything is measured for it.

    Raises:
        InputError: if it is a folder, or in none.
    """
    if file.is_dir() or not file.parent.is_dir():
        raise InputError(f"The figures cannot be written to {file}. Give --json a file in a folder that exists.")


def write_figures(file: Path, figures: dict[str, Any]) -> None:
    """As JSON.

    Raises:
        BapsError: if they cannot be written.
    """
    try:
        file.write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        said = f"The figures cannot be written to {file} ({error.strerror}). Give another --json."
        raise BapsError(said) from error
