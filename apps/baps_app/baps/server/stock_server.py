"""What MONAI Label's own server may serve: it has no login, and checks nothing that a request names."""

from __future__ import annotations

import logging
import os

from baps.errors import InputError
from baps.site.server_command import is_pacs
from baps.site.settings import Settings

logger = logging.getLogger(__name__)

_VARIABLE = "BAPS_SERVING"

PROTECTED = {_VARIABLE: "protected"}
"""Environment variable of a server whose requests pass the guard, and of its trainings."""


def check_stock_server(studies: str, site: Settings) -> None:
    """Warn that MONAI Label's own server protects nothing, and refuse what must not be left to it.

    Does nothing in the protected server.

    Args:
        studies: Folder of images, or the DICOMweb address of a PACS.
        site: Settings of the site.

    Raises:
        InputError: If users are configured, whom that server would not ask for, or the studies lie on a PACS.
    """
    if os.environ.get(_VARIABLE) == PROTECTED[_VARIABLE]:
        return
    if site.closed:
        raise InputError(
            "Users are named, but MONAI Label's stock server lets everybody in. Start it with `make serve`, or with "
            "--uvicorn_app baps.server.asgi:app."
        )
    if is_pacs(studies) and not site.allow_unprotected:
        raise InputError(
            "MONAI Label's stock server would open the PACS to everybody who reaches it. Start it with `make serve "
            "STUDIES=...`, or say that you want that: --conf allow_unprotected yes."
        )
    logger.warning(
        "This server is UNPROTECTED: it is MONAI Label's stock server, which lets everybody in, takes paths from "
        "requests unchecked and answers one request at a time. Start it with `make serve STUDIES=...` on any machine "
        "that others can reach."
    )
