"""``baps demo``: the whole workflow on phantoms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    seed: Annotated[int, typer.Option(help="Random seed of the clicks, the choice of volumes, and the training.")] = 0,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for the results. An earlier demo in it is replaced.")
    ] = Path("demo-output"),
    max_images: Annotated[
        int, typer.Option(help="Maximum number of images that the adaptation sends to the model.")
    ] = 2000,
    remote: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address of a model on another machine, instead of the bundled one.")
    ] = "",
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server running, to look at its page.")] = False,
) -> None:
    """Start a server on phantoms, click, save labels, train, and click again, in a minute or two.

    It prints a table of the results, and writes pictures to report.html.
    """
    from baps.site.server_command import check_installed

    check_installed()
    from baps.demo.run import run

    run(out.absolute(), seed, max_images, remote, keep)
