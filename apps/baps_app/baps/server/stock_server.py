"""Check what MONAI Label's own server may serve: it has no login, and does not check the paths in requests."""

from __future__ import annotations

import logging
import os

from baps.errors import InputError
from baps.site.server_command import PROTECTED, is_pacs
from baps.site.settings import Settings

logger = logging.getLogger(__name__)


def check_stock_server(studies: str, site: Settings) -> None:
    """Log a warning about MONAI Label's own server, and refuse sites that it must not serve.

    In the protected server this does nothing.

    Args:
        studies: Folder of images, or the DICOMweb address of a PACS.
        site: Settings of the site.

    Raises:
        InputError: If users are configured, who would not have to sign in, or if the studies are on a PACS.
    """
    if PROTECTED.items() <= os.environ.items():
        return
    if site.requires_login:
        raise InputError(
            "Users are configured, but MONAI Label's stock server lets anyone in. Start the server with `baps serve`, "
            "or add --uvicorn_app baps.server.asgi:app."
        )
    if is_pacs(studies) and not site.allow_unprotected:
        raise InputError(
            "MONAI Label's stock server would open the PACS to anyone who can reach it. Start the server with `baps "
            "serve`, or allow this: --conf allow_unprotected yes."
        )
    logger.warning(
        "This server is UNPROTECTED: it is MONAI Label's stock server, which lets anyone in, does not check the paths "
        "in requests, and serves one request at a time. If others can reach this machine, use `baps serve` instead."
    )
