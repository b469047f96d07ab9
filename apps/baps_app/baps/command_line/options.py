"""Options that several commands have: the settings of a site. Empty means: not given."""

from __future__ import annotations

from typing import Annotated

import typer

Labels = Annotated[str, typer.Option(help="Organs, as in spleen,liver, or with their values: spleen=1,liver=6.")]
BlackBox = Annotated[str, typer.Option(help="The model: bundled or sam.")]
Weights = Annotated[str, typer.Option(metavar="FILE", help="Checkpoint of the model; needed for sam.")]
WeightsSha256 = Annotated[str, typer.Option("--weights-sha256", help="The hash that the checkpoint must have.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]
Adapters = Annotated[str, typer.Option(metavar="FOLDER", help="Where adapters are kept; the app's own by default.")]
CacheMb = Annotated[str, typer.Option(metavar="MB", help="Memory for volumes and encodings.")]
Config = Annotated[str, typer.Option(metavar="FILE", help="JSON file of settings, which the options overrule.")]


def given(**options: str) -> dict[str, str]:
    """The options that were given, by the name of the setting, as ``read_settings`` takes them."""
    return {name: value for name, value in options.items() if value}
