"""Provide ``baps.server.asgi:app``, the application that uvicorn imports by name.

``baps serve`` runs ``launch.py start_server ... --uvicorn_app baps.server.asgi:app``. MONAI Label's own command has the
same option. Importing this module does nothing: the application is created when uvicorn reads ``app``.
"""

from __future__ import annotations

import os
import sys
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI
from monailabel.config import settings as monailabel_settings

from baps.errors import BapsError
from baps.server.application import create_app
from baps.server.listening import parse_bind_host, parse_root_path_option, warn_without_proxy
from baps.server.middleware.connections import limit_connections
from baps.server.startup_message import announce, server_lines
from baps.site.app_folder import app_folder
from baps.site.server_command import check_listening
from baps.site.settings import Settings, parse_root_path, read_settings

if TYPE_CHECKING:
    from baps.server.app import BapsApp


def __getattr__(name: str) -> FastAPI:
    if name == "app":
        return _served_application()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _served_application() -> FastAPI:
    """Create the application from the options of MONAI Label's command, and prepare this process for serving it.

    Raises:
        SystemExit: If a setting cannot be used, with a sentence.
    """
    os.umask(0o077)  # launch.py does the same; MONAI Label's own command does not.
    limit_connections()
    try:
        settings = read_settings(monailabel_settings.MONAI_LABEL_APP_CONF)
        host = parse_bind_host(sys.argv)
        check_listening(host, settings.requires_login)
        root = parse_root_path(parse_root_path_option(sys.argv)) or settings.root_path
        application = create_app(
            settings,
            monailabel_settings.MONAI_LABEL_STUDIES,
            Path(monailabel_settings.MONAI_LABEL_APP_DIR or app_folder()),
            root,
            on_start=partial(_announce, settings, host, root),
        )
    except BapsError as error:
        raise SystemExit(str(error)) from None
    warn_without_proxy(host)
    return application


def _announce(settings: Settings, host: str, root: str, app: BapsApp) -> None:
    if "start_server" in sys.argv:
        port = monailabel_settings.MONAI_LABEL_SERVER_PORT
        announce(host, port, "/login" if settings.requires_login else "/", lambda: server_lines(host, port, root, app))
