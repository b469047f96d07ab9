"""Keep the temporary files of a server in a folder of its own, which is removed when the server stops.

MONAI Label leaves uploads, replies and a log configuration among the temporary files. Each server has a folder inside
``baps-<user id>``, which only its user can read. A lock says whether the server still runs: the system releases it when
the server is killed, and the next server that starts removes the folder.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

_LOCK = ".lock"


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder in which this process and its children put temporary files, and remove it at the end.

    Folders of this user's servers that were killed are removed first. Symbolic links are not followed.

    Yields:
        Path of the folder.
    """
    shared, before = _shared_folder(), (tempfile.tempdir, os.environ.get("TMPDIR"))
    if shared is None:
        folder, lock = Path(tempfile.mkdtemp(prefix="baps-")), None
    else:
        with _lock_of(shared):
            _remove_orphans(shared)
            folder = Path(tempfile.mkdtemp(prefix="server-", dir=shared))
            lock = _lock_of(folder)
            lock.acquire()
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    try:
        yield folder
    finally:
        tempfile.tempdir = before[0]
        os.environ.pop("TMPDIR")
        if before[1] is not None:
            os.environ["TMPDIR"] = before[1]
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            lock.release()


def _shared_folder() -> Path | None:
    """Return the folder of this user's servers, or None if another user has taken its name."""
    folder = Path(tempfile.gettempdir()).absolute() / f"baps-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
    return folder if ours else None


def _remove_orphans(shared: Path) -> None:
    """Remove the folders whose server was killed."""
    for folder in shared.iterdir():
        if folder.is_symlink() or not folder.is_dir():
            continue
        lock = _lock_of(folder)
        with suppress(Timeout), lock.acquire(blocking=False):
            shutil.rmtree(folder, ignore_errors=True)


def _lock_of(folder: Path) -> FileLock:
    """Return the lock that a server holds as long as it uses a folder."""
    return FileLock(folder / _LOCK, mode=0o600, fallback_to_soft=False)
