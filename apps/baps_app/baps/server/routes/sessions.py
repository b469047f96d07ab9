"""Routes for sessions: images that a viewer uploads for a while, and that only the same user can use."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import File, HTTPException, Request, UploadFile
from fastapi.responses import FileResponse
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.others.generic import get_mime_type
from monailabel.utils.sessions import SessionInfo, Sessions

from baps.errors import InputError, NotFoundError
from baps.server.request_context import context_of
from baps.server.request_names import checked_name
from baps.server.routes.datastore import file_name
from baps.site.roles import Role

_MAX_SESSIONS = 64
"""Maximum number of open sessions per user. They expire after an hour without use."""

_OWNER = "owner"


def open_session(request: Request, expiry: int = 0, files: list[UploadFile] = File(...)) -> dict[str, Any]:
    """Open a session with an image or the files of a series.

    Raises:
        InputError: If the name of a file is not valid, or MONAI Label uses it.
        HTTPException: 406 if the server keeps no sessions, 429 if the user has too many.
    """
    names = [checked_name(file_name(file), "file") for file in files]
    if "meta.info" in names:
        raise InputError("The name meta.info is reserved. Send the image under another name.")
    sessions, owner = _sessions(), context_of(request).name
    if _count(sessions, owner) >= _MAX_SESSIONS:
        raise HTTPException(429, f"You have {_MAX_SESSIONS} sessions open. Close one that you no longer need.")
    with _received(files, names) as received:
        # MONAI Label's own ids can be guessed, because they consist of the time and the machine's address.
        name, info = sessions.add_session(str(received), expiry, session_id=secrets.token_hex(16))
    info.meta = {_OWNER: owner}
    sessions._write_meta_info(name, info)
    context_of(request).image = name
    return {"session_id": name, "session_info": info.to_json()}


def read_session(request: Request, session_id: str, update_ts: bool = False, image: bool = False) -> Any:
    """Return the information about a session, or its image.

    Raises:
        NotFoundError: If there is no such session, or it is another user's.
        InputError: If the session has several files, which cannot be sent as one image.
    """
    session = find_session(request, session_id, update_ts)
    if not image:
        return session.to_json()
    file = Path(session.image)
    if not file.is_file():
        raise InputError("The session has several files, which cannot be sent as one image.")
    return FileResponse(file, media_type=get_mime_type(str(file)), filename=file.name)


def close_session(request: Request, session_id: str) -> Any:
    """Close a session and remove its image.

    Raises:
        NotFoundError: As ``read_session``.
    """
    session = find_session(request, session_id)
    _sessions().remove_session(session_id)
    return session.to_json()


def find_session(request: Request, session_id: str, update_ts: bool = True) -> SessionInfo:
    """Return a session of the user. Trainers may use those of others.

    Args:
        request: The request.
        session_id: Id of the session.
        update_ts: Whether this counts as a use of the session.

    Returns:
        The session.

    Raises:
        NotFoundError: If there is no such session.
    """
    checked_name(session_id, "session_id")
    session = _sessions().get_session(session_id, update_ts=update_ts)
    principal = context_of(request).principal
    is_allowed = principal is not None and (principal.role.may(Role.TRAINER) or _owner(session) == principal.name)
    if session is None or not is_allowed:
        raise NotFoundError(f"There is no session {session_id!r}, or it has expired. Open the image again.")
    return session


def _sessions() -> Sessions:
    sessions = app_instance().sessions()
    if sessions is None:
        raise HTTPException(
            406, "This server has no sessions, because its operator has set MONAI_LABEL_SESSIONS to false."
        )
    return sessions


def _owner(session: SessionInfo) -> object:
    return (session.meta or {}).get(_OWNER)


def _count(sessions: Sessions, owner: str) -> int:
    """Count the sessions of a user on the disk, because another process of the server may have opened some."""
    folder = Path(sessions.store_path)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    on_disk = (sessions.get_session(name, update_ts=False) for name in names)
    return sum(session is not None and _owner(session) == owner for session in on_disk)


@contextmanager
def _received(files: list[UploadFile], names: list[str]) -> Iterator[Path]:
    """Write the files of a request to disk, and yield the path of the file, or of the folder if there are several."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "series"
        folder.mkdir()
        for file, name in zip(files, names, strict=True):
            with (folder / name).open("wb") as target:
                shutil.copyfileobj(file.file, target)
        yield folder if len(files) > 1 else folder / names[0]
