"""Options that several commands share: settings of a site, and folders of labelled images."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from baps.blackbox.choices import BLACK_BOXES, VOLUME_BLACK_BOXES
from baps.cli.console import Console

if TYPE_CHECKING:
    from baps.blackbox import BlackBox as BlackBoxModel
    from baps.site.settings import Settings

_MAX_REASONS = 10
_KEYWORD = inspect.Parameter.KEYWORD_ONLY

Labels = Annotated[str, typer.Option(help="Organs, as in spleen,liver, or with their values: spleen=1,liver=6.")]
BlackBox = Annotated[
    str,
    typer.Option(
        help=f"The model: {', '.join(BLACK_BOXES[:-1])} or {BLACK_BOXES[-1]} (on another machine). For baps adapt and "
        f"baps evaluate also {' or '.join(VOLUME_BLACK_BOXES)}, which answer in 3D."
    ),
]
Weights = Annotated[str, typer.Option(metavar="FILE", help="Checkpoint of the model; bundled and remote need none.")]
WeightsSha256 = Annotated[str, typer.Option("--weights-sha256", help="SHA-256 that the checkpoint must have.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1; or several, one replica on each: cuda:0,cuda:1.")]
Remote = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS",
        help="Address of the model remote: http://host:8000/model, or https, grpc, grpcs; or of nninteractive: "
        "http://host:1527.",
    ),
]
VolumeBlackBox = Annotated[
    str, typer.Option(help=f"Model that answers nnInteractive's viewers in 3D: {', '.join(VOLUME_BLACK_BOXES)}.")
]
VolumeRemote = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Address of the nninteractive-server: http://host:1527, or https.")
]
Adapters = Annotated[str, typer.Option(metavar="FOLDER", help="Folder of adapters. Default: the app's own.")]
CacheMb = Annotated[str, typer.Option(metavar="MB", help="Memory for volumes and encodings.")]
Users = Annotated[str, typer.Option(metavar="FILE", help="File of the users of the server, see baps users.")]
OpenId = Annotated[
    str, typer.Option("--openid", metavar="FILE", help="File of the OpenID provider whose users may sign in.")
]
RootPath = Annotated[
    str, typer.Option(metavar="PATH", help="Path below which a proxy serves it: /baps for https://hospital/baps/.")
]
Worklist = Annotated[
    str, typer.Option(metavar="FILE", help="File of the studies of the PACS to serve, one StudyInstanceUID per line.")
]
Config = Annotated[str, typer.Option(metavar="FILE", help="JSON file of settings. Options override it.")]

Images = Annotated[Path, typer.Option(metavar="DIR", help="Folder of images: files, or one folder per DICOM series.")]
LabelFolder = Annotated[Path, typer.Option(metavar="DIR", help="Folder of labels with the same names.")]
Patients = Annotated[
    Path | None,
    typer.Option(metavar="CSV", help="Table of image and patient, for images that do not name their patient."),
]
Seed = Annotated[int, typer.Option(help="Random seed.")]


_ANNOTATIONS = {
    "labels": Labels,
    "black_box": BlackBox,
    "weights": Weights,
    "weights_sha256": WeightsSha256,
    "device": Device,
    "remote": Remote,
    "volume_black_box": VolumeBlackBox,
    "volume_remote": VolumeRemote,
    "adapters": Adapters,
    "cache_mb": CacheMb,
    "users": Users,
    "openid": OpenId,
    "root_path": RootPath,
    "worklist": Worklist,
    "config": Config,
}
"""The options for settings of a site, by the name of the setting."""

MODEL = ("black_box", "weights", "weights_sha256", "device", "remote")
"""Settings that choose the black box."""

SITE = ("labels", *MODEL, "volume_black_box", "volume_remote", "adapters", "cache_mb", "users", "openid")
"""Settings of a server."""


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command: replace its parameter ``settings`` by the options for settings of a site.

    The command gets the options that the user set as a dictionary, as ``read_settings`` takes them.

    Args:
        *names: Names of the settings.

    Returns:
        The decorator.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def wrapped(**values: Any) -> None:
            settings = given_settings(**{name: values.pop(name, "") for name in names})
            command(**values, settings=settings)

        added = [inspect.Parameter(name, _KEYWORD, default="", annotation=_ANNOTATIONS[name]) for name in names]
        parameters: list[inspect.Parameter] = []
        signature = inspect.signature(command, eval_str=True)
        for parameter in signature.parameters.values():
            parameters += added if parameter.name == "settings" else [parameter.replace(kind=_KEYWORD)]
        wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # Typer reads it.
        return wrapped

    return decorate


def given_settings(**options: str) -> dict[str, str]:
    """Select the options that the user set.

    Args:
        **options: Values by the name of the setting; "" for options that were not set.

    Returns:
        Values of the options that were set, as ``read_settings`` takes them.
    """
    return {name: value for name, value in options.items() if value}


def load_site(settings: Mapping[str, str]) -> tuple[Settings, BlackBoxModel]:
    """Read the settings and load their black box.

    Args:
        settings: Values by the name of the setting.

    Returns:
        The settings of the site, and the black box.

    Raises:
        InputError: If the settings or the weights cannot be used.
    """
    from baps.blackbox import load_black_box
    from baps.site.settings import read_settings

    site = read_settings(settings)
    return site, load_black_box(site.black_box, site.weights, site.weights_sha256, site.device, site.remote_model)


def print_skipped(reasons: Mapping[str, str]) -> None:
    """Print the reasons why images or labels were skipped, at most ten.

    Args:
        reasons: Reasons by the name of the image or label.
    """
    console = Console(soft_wrap=True, highlight=False)
    for name, reason in list(reasons.items())[:_MAX_REASONS]:
        console.print(f"Skipped: {name}. {reason}", style="yellow", markup=False)
    if len(reasons) > _MAX_REASONS:
        console.print(f"Skipped: {len(reasons) - _MAX_REASONS} more.", style="yellow")


def print_notes(notes: Iterable[str]) -> None:
    """Print notes on how ambiguous files were read.

    Args:
        notes: One sentence each.
    """
    console = Console(soft_wrap=True, highlight=False)
    for note in notes:
        console.print(note, markup=False)


def parse_label(value: str | None) -> int | str | None:
    """Parse the option ``--label``.

    Args:
        value: A value of a labelmap, the name of a segment, or None for no label.

    Returns:
        The value as a number, the name, or None.
    """
    return int(value) if value and value.removeprefix("-").isdecimal() else value
