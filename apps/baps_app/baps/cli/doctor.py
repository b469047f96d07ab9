"""``baps doctor``: check the machine, the settings and the studies."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from baps.cli import options
from baps.cli.console import Console

_STYLES = {"ok": "green", "warning": "yellow", "FAILED": "bold red"}


@options.with_settings(*options.SITE, "config")
def doctor(
    studies: Annotated[str, typer.Argument(help="Folder of images, or the DICOMweb URL of a PACS.")] = "",
    *,
    settings: dict[str, str],
    host: Annotated[str, typer.Option(help="Address that the server will listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON, for programs.")] = False,
) -> None:
    """Check this machine, the settings and the studies, and print how to fix each problem.

    The exit status is 1 if a check failed. The account for a PACS comes from the setting pacs_credentials, or from
    MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD in the environment.
    """
    from baps.site.doctor import Status, examine

    with Console(stderr=True).status("Checking; this takes about 10 seconds"):
        findings = examine(settings, studies, host, port)
    if as_json:
        print(json.dumps([{"check": check, **asdict(finding)} for check, finding in findings.items()], indent=1))
    else:
        table = Table("check", "", "result", "remedy")
        for check, finding in findings.items():
            status = Text(finding.status.value, _STYLES[finding.status.value])
            table.add_row(check, status, Text(finding.message), Text(finding.remedy))
        Console().print(table)
    if any(finding.status is Status.FAILED for finding in findings.values()):
        raise typer.Exit(1)
