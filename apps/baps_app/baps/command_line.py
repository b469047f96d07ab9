"""The command ``baps``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .errors import BapsError
from .settings import read_settings
from .store import SHARED, AdapterStore

app = typer.Typer(no_args_is_help=True, help="Promptable segmentation that adapts to your images.")
adapters = typer.Typer(no_args_is_help=True, help="List, show and publish adapters.")
app.add_typer(adapters, name="adapters")

Root = Annotated[
    Path | None, typer.Option("--adapters", help="Folder of the store; else BAPS_ADAPTERS, else the app's.")
]
Label = Annotated[str, typer.Argument(help="The organ; 'shared' for the adapter of clicks without a label.")]
console = Console()


def _store(root: Path | None) -> AdapterStore:
    return AdapterStore(root or read_settings({}).adapters)


def _label(name: str) -> str:
    return SHARED if name == "shared" else name


@adapters.command("list")
def list_adapters(root: Root = None) -> None:
    """Every version, what its check said (Dice on held-back patients), and which one is served."""
    store = _store(root)
    table = Table("label", "version", "served", "status", "before", "after", "gain", "images")
    for label in store.labels():
        for version in store.versions(label):
            record = store.record(label, version)
            verdict = record["verdict"] or {}
            numbers = [f"{verdict[key]:.3f}" if verdict else "" for key in ("before", "after", "gain")]
            served = "yes" if store.published(label) == version else ""
            images = str(record["black_box_images"])
            table.add_row(escape(label or "shared"), version, served, record["status"], *numbers, images)
    console.print(table)


@adapters.command()
def show(label: Label, version: str, root: Root = None) -> None:
    """The record of one version."""
    console.print_json(json.dumps(_store(root).record(_label(label), version)))


@adapters.command()
def publish(label: Label, version: str, root: Root = None) -> None:
    """Serve a version from the next click on: an older one to roll back, or one that nobody could check."""
    _store(root).publish(_label(label), version)
    console.print(f"{label} is served by {version} now.", markup=False)


@adapters.command()
def withdraw(label: Label, root: Root = None) -> None:
    """Serve the model as it is from the next click on; all versions are kept."""
    _store(root).withdraw(_label(label))
    console.print(f"{label} is served by the model as it is now.", markup=False)


def main() -> None:
    """Run the command; errors that were foreseen are one sentence."""
    try:
        app()
    except BapsError as error:
        Console(stderr=True, soft_wrap=True).print(str(error), style="red", markup=False, highlight=False)
        raise SystemExit(1) from None
