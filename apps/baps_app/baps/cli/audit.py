"""``baps audit``: check that the audit file is intact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from baps.cli.audit_log import private_files
from baps.cli.options import Adapters, given_settings

app = typer.Typer(no_args_is_help=True, callback=private_files, help="Check the audit file.")

console = Console(soft_wrap=True, highlight=False)


@app.command()
def verify(
    file: Annotated[str, typer.Option(metavar="FILE", help="The audit file. Default: that of the settings.")] = "",
    chain: Annotated[
        str, typer.Option(help="Chain of a line that must be in the file, as printed by an earlier call.")
    ] = "",
    adapters: Adapters = "",
) -> None:
    """Check that no line was changed or removed. If the chain breaks, the exit status is 1.

    Keep the chain of the last line elsewhere and pass it as --chain the next time. Otherwise a person who can write to
    the folder could restore an earlier state of all its files unnoticed.
    """
    from baps.errors import BapsError, InputError
    from baps.site.audit_check import check_audit

    if file:
        place = Path(file).expanduser()
    else:
        from baps.site.settings import read_settings

        place = read_settings(given_settings(adapters=adapters)).audit_file
    if not place.is_file():
        raise InputError(f"There is no audit file {place}. Name it with --file.")
    try:
        check = check_audit(place, chain)
    except OSError as error:
        raise BapsError(f"The audit file {place} cannot be read ({error.strerror}).") from error
    if check.unchained:
        console.print(f"The first {check.unchained} lines are from an older release and have no chain.")
    if check.halves:
        console.print(f"{check.halves} incomplete lines, from a full disk or a power cut.")
    for sentence in check.breaks:
        console.print(sentence, style="red", markup=False)
    if check.breaks:
        raise typer.Exit(1)
    console.print(f"Intact: {check.chained} lines. The last is {check.last.n}, its chain {check.last.chain or 'none'}.")
