"""Remove expired sessions of MONAI Label from the disk, including incomplete ones of a killed server.

MONAI Label's own function does nothing while no session is in memory, as after a start, and stops at the first folder
that has no ``meta.info``.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from monailabel.utils.sessions import Sessions


def remove_expired(sessions: Sessions) -> int:
    """Remove expired sessions.

    Args:
        sessions: Sessions of the server.

    Returns:
        The number of sessions that were removed.
    """
    folder, now, count = Path(sessions.store_path), time.time(), 0
    for place in folder.iterdir() if folder.is_dir() else ():
        if place.is_symlink() or not place.is_dir():
            continue
        try:
            info = json.loads((place / "meta.info").read_text())
            expires = float(info["last_access_ts"]) + min(float(info["expiry"]) or sessions.expiry, sessions.expiry)
        except (OSError, ValueError, KeyError, TypeError):  # It is being written, or the server was killed.
            try:
                expires = place.stat().st_mtime + sessions.expiry
            except FileNotFoundError:  # The session was closed meanwhile.
                continue
        if expires < now:
            sessions.pop(place.name, None)
            shutil.rmtree(place, ignore_errors=True)
            count += 1
    return count
