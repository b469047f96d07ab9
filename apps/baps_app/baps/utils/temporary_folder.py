"""Temporary files of a server: in a folder of its own, which goes when it stops, or is removed at the next start.

MONAI Label leaves uploads, replies and a log configuration where temporary files are. The folder lies in
``baps-<user id>`` there, which is its user's alone. A lock says whether a server still uses it; the system releases
that when the server is killed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOCK = ".lock"


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder in which this process and its children put temporary files, and remove it in the end.

    What servers left that were killed is removed first: folders of this user alone, and no link is followed.
    """
    shared, before = _shared_folder(), (tempfile.tempdir, os.environ.get("TMPDIR"))
    if shared is None:
        folder, handle = Path(tempfile.mkdtemp(prefix="baps-")), None
    else:
        with _locked(shared):
            _remove_left(shared)
            folder = Path(tempfile.mkdtemp(prefix="server-", dir=shared))
            handle = _lock(folder)
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    try:
        yield folder
    finally:
        tempfile.tempdir = before[0]
        os.environ.pop("TMPDIR")
        if before[1] is not None:
            os.environ["TMPDIR"] = before[1]
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _shared_folder() -> Path | None:
    """The folder of this user's servers, or None if another user has taken its name."""
    folder = Path(tempfile.gettempdir()).absolute() / f"baps-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return folder if ours else None


def _remove_left(shared: Path) -> None:
    for left in shared.iterdir():
        if left.is_symlink() or not left.is_dir():
            continue
        handle = _lock(left)
        if handle is not None:  # Nobody has it: its server was killed.
            shutil.rmtree(left, ignore_errors=True)
            os.close(handle)


def _lock(folder: Path) -> int | None:
    """Take the lock of a folder, and keep it for as long as what is returned is open; None if another has it."""
    handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


@contextmanager
def _locked(shared: Path) -> Iterator[None]:
    """One server at a time makes its folder, or removes others."""
    handle = os.open(shared / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
