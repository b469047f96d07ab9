"""``baps serve``: start the server."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from baps.cli import options


@options.with_settings(*options.SITE, "root_path", "worklist", "config")
def serve(
    studies: Annotated[
        str,
        typer.Argument(
            help="Folder of images, or the DICOMweb URL of a PACS and a query: 'https://pacs/dicom-web?Modality=CT'."
        ),
    ],
    *,
    settings: dict[str, str],
    host: Annotated[str, typer.Option(help="Address to listen on. Any but 127.0.0.1 needs users.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
) -> None:
    """Serve a folder of images or a PACS to 3D Slicer and OHIF.

    The account for a PACS comes from the setting pacs_credentials, or from MONAI_LABEL_DICOMWEB_USERNAME and
    MONAI_LABEL_DICOMWEB_PASSWORD in the environment; never from the command line, which other users can read.
    """
    from baps.site.server_command import check_listening, check_port, check_studies, serving_command
    from baps.site.settings import check_settings, read_settings

    site = read_settings(settings)
    check_settings(site)
    check_studies(studies, site.worklist)
    check_listening(host, site.requires_login)
    check_port(host, port)
    command, environment = serving_command(studies, host, port, settings)
    print(
        f"==> Starting the server on {studies}. It prints its address when it is ready, in about half a minute. "
        "Stop it with Ctrl+C."
    )
    sys.stdout.flush()  # The next line replaces this process.
    os.execve(command[0], command, environment)  # noqa: S606 (no shell; a process of its own would not get the signals)
