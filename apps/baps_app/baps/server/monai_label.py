"""Set the global state of MONAI Label, so that several applications can run in one process.

MONAI Label serves one application per process: ``monailabel.config.settings`` names its folder and its studies,
``app_instance()`` returns it, and the trainings that it starts read both from environment variables.
``MonaiLabelState`` holds this state for one application, and ``select`` sets the globals to it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import monailabel.interfaces.utils.app
from fastapi.routing import APIRoute
from monailabel.config import settings as monailabel_settings
from monailabel.endpoints import (
    activelearning,
    batch_infer,
    datastore,
    infer,
    info,
    logs,
    model,
    ohif,
    proxy,
    scoring,
    session,
    train,
    wsi_infer,
)
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.utils import stop_background_task

from baps.site.server_command import PROTECTED
from baps.site.settings import Settings

if TYPE_CHECKING:
    from baps.server.app import BapsApp

TITLE: str = monailabel_settings.MONAI_LABEL_PROJECT_NAME

_ENDPOINTS = (
    info, model, infer, wsi_infer, batch_infer, train, activelearning, scoring, datastore, logs, ohif, proxy, session
)  # fmt: skip


class MonaiLabelState:
    """Hold MONAI Label's global state for one application.

    Args:
        settings: Settings of the site.
        studies: Folder of images, or the DICOMweb address of a PACS.
        app_dir: Folder of the MONAI Label app, which holds ``main.py``.
    """

    def __init__(self, settings: Settings, studies: str, app_dir: Path) -> None:
        self.studies, self._app_dir, self._conf = studies, str(app_dir), settings_as_conf(settings)
        self._selected = {
            "MONAI_LABEL_APP_DIR": self._app_dir,
            "MONAI_LABEL_STUDIES": studies,
            "MONAI_LABEL_APP_CONF": json.dumps(self._conf),
            **PROTECTED,
        }

    def select(self) -> None:
        """Make this the application that MONAI Label's functions use, and the trainings that they start."""
        if monailabel_settings.MONAI_LABEL_APP_CONF is self._conf:
            return
        monailabel_settings.MONAI_LABEL_APP_DIR = self._app_dir
        monailabel_settings.MONAI_LABEL_STUDIES = self.studies
        monailabel_settings.MONAI_LABEL_APP_CONF = self._conf
        os.environ.update(self._selected)
        os.environ.setdefault("PYTHONPATH", self._app_dir)  # MONAI Label reads it when it starts a training.

    def start(self) -> BapsApp:
        """Load the app from its folder, and start its work in the background.

        Returns:
            The app. ``app_instance()`` returns it while this state is selected.

        Raises:
            BapsError: If a setting or the studies cannot be used.
        """
        self.select()
        # MONAI Label logs paths and settings at start, and names of images later.
        logging.getLogger("monailabel").setLevel(logging.WARNING)
        app: BapsApp = app_instance()
        app.server_mode(True)
        app.on_init_complete()
        return app

    def stop(self, app: BapsApp) -> None:
        """Stop a running training and the app's work in the background, and remove the app from the globals.

        Args:
            app: The app.
        """
        stop_background_task("train")
        app.close()
        monailabel.interfaces.utils.app.apps.pop(f"{self._app_dir}{self.studies}", None)


def monailabel_routes() -> list[APIRoute]:
    """Return the routes of MONAI Label's own application, except those of its login."""
    return [route for module in _ENDPOINTS for route in module.router.routes if isinstance(route, APIRoute)]


def settings_as_conf(settings: Settings) -> dict[str, Any]:
    """Convert settings to names and values for JSON, which ``read_settings`` reads back.

    Args:
        settings: Settings of the site.

    Returns:
        Values by name.
    """
    return {name: _json_value(value) for name, value in vars(settings).items()}


def _json_value(value: object) -> object:
    if value is None:
        return ""  # The default, whatever the environment says.
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value
