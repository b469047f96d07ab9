"""Sessions of MONAI Label that have expired are removed from the disk, whatever a kill has left among them.

The host's own cleaning does nothing while it has no session in memory, as after a start, and ends at the first folder
without its ``meta.info``.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from monailabel.utils.sessions import Sessions


def remove_expired(sessions: Sessions) -> int:
    """Remove the sessions that nobody has used for as long as they last; how many there were."""
    folder, now, count = Path(sessions.store_path), time.time(), 0
    for place in folder.iterdir() if folder.is_dir() else ():
        if place.is_symlink() or not place.is_dir():
            continue
        try:
            said = json.loads((place / "meta.info").read_text())
            ends = float(said["last_access_ts"]) + min(float(said["expiry"]) or sessions.expiry, sessions.expiry)
        except (OSError, ValueError, KeyError, TypeError):  # It is being written, or a kill came before it was.
            try:
                ends = place.stat().st_mtime + sessions.expiry
            except FileNotFoundError:  # Somebody has closed it.
                continue
        if ends < now:
            sessions.pop(place.name, None)
            shutil.rmtree(place, ignore_errors=True)
            count += 1
    return count
