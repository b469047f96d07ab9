"""``baps demo``: the main job from end to end, on phantoms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    seed: Annotated[int, typer.Option(help="Of the clicks, the choice of volumes, and the training.")] = 0,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for what comes out; an older demo in it is replaced.")
    ] = Path("demo-output"),
    max_images: Annotated[int, typer.Option(help="Black-box images that the adaptation may use.")] = 2000,
    remote: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address of a model on another machine, in place of the bundled one.")
    ] = "",
) -> None:
    """Start a server on phantoms, click, save labels, train and click again; a minute or two.

    It ends with a table, and with pictures in report.html.
    """
    from baps.site.server_command import check_installed

    check_installed()
    from baps.demo.run import run

    run(out.absolute(), seed, max_images, remote)
