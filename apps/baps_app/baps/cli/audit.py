"""``baps audit``: whether the audit file is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from baps.cli.audit_log import private_files
from baps.cli.options import Adapters, given

app = typer.Typer(no_args_is_help=True, callback=private_files, help="Check the file of who did what.")

console = Console(soft_wrap=True, highlight=False)


@app.command()
def verify(
    file: Annotated[str, typer.Option(metavar="FILE", help="The audit file; by default that of the settings.")] = "",
    chain: Annotated[
        str, typer.Option(help="The chain of a line that must be there, as an earlier call printed it.")
    ] = "",
    adapters: Adapters = "",
) -> None:
    """Say whether every line is as it was written and none is missing, or where the chain breaks (then it ends with 1).

    Keep the last line's chain elsewhere, and give it with --chain the next time: who can write to the folder could
    otherwise put an earlier state of all its files back unseen.
    """
    from baps.errors import BapsError, InputError
    from baps.site.audit_check import check_audit

    if file:
        place = Path(file).expanduser()
    else:
        from baps.site.settings import read_settings  # Which imports what takes seconds.

        place = read_settings(given(adapters=adapters)).audit_file
    if not place.is_file():
        raise InputError(f"There is no audit file {place}. Name it with --file.")
    try:
        found = check_audit(place, chain)
    except OSError as error:
        raise BapsError(f"The audit file {place} cannot be read ({error.strerror}).") from error
    if found.unchained:
        console.print(f"{found.unchained} lines of an older release, which have no chain, come first.")
    if found.halves:
        console.print(f"{found.halves} half written lines: a full disk or a power cut.")
    for sentence in found.breaks:
        console.print(sentence, style="red", markup=False)
    if found.breaks:
        raise typer.Exit(1)
    console.print(f"Whole: {found.chained} lines. The last is {found.last.n}, its chain {found.last.chain or 'none'}.")
