"""The folder of the MONAI Label app, in which the server keeps adapters and logs.

In a checkout it is ``apps/baps_app``. An installed package makes one in the user's state folder:
``~/.local/state/baps``, or ``$XDG_STATE_HOME/baps``.
"""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_state_path

from baps.errors import BapsError
from baps.utils.atomic_write import atomic_write

PACKAGES = Path(__file__).resolve().parents[2]
"""Folder of the package on Python's path."""

IN_CHECKOUT = PACKAGES.name == "baps_app" and (PACKAGES / "main.py").is_file()
"""Whether the package runs from a checkout of the repository."""

_MAIN = '''"""Written by baps serve at every start: the MONAI Label app, as MONAI Label's loader finds it."""

from baps.server.app import BapsApp

__all__ = ["BapsApp"]
'''


def app_folder() -> Path:
    """Return the folder of the MONAI Label app, which need not exist yet.

    Returns:
        The folder, as an absolute path.
    """
    return PACKAGES if IN_CHECKOUT else user_state_path("baps", appauthor=False).absolute()


def prepare_app_folder() -> Path:
    """Prepare the folder for MONAI Label, which runs the file ``main.py`` in it.

    Returns:
        The folder.

    Raises:
        BapsError: If it cannot be written to, or if other users could change ``main.py``.
    """
    folder = app_folder()
    if IN_CHECKOUT:
        return folder
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise BapsError(
                f"Other users can change {folder}, where the server runs the file main.py. Make the folder yours and "
                f"restrict it: chown {os.getuid()} {folder}; chmod 700 {folder}"
            )
        with atomic_write(folder / "main.py", mode=0o600) as partial:
            partial.write_text(_MAIN)
    except OSError as error:
        raise BapsError(
            f"The state folder {folder} cannot be written to ({error.strerror}). Make room, or set XDG_STATE_HOME to "
            "another folder."
        ) from error
    return folder
