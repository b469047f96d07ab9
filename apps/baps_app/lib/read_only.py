"""Studies that cannot be written to, as on a mount of a scanner's export: served, and saving is refused."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from monailabel.config import settings

from baps.errors import StorageError
from baps.formats import images_folder
from baps.label_history import LIST
from lib.studies import StudiesDatastore

logger = logging.getLogger(__name__)


class ReadOnlyStudies(StudiesDatastore):
    """The images and labels of a folder that stays as it is.

    What the server itself writes, its list of images and the series that it converts, lies in a folder of its own.

    Args:
        folder: the studies.
        auto_reload: notice files that come or go.
    """

    def __init__(self, folder: str, auto_reload: bool) -> None:
        self._studies = Path(folder).resolve()
        own = _own_folder(self._studies)
        logger.warning("The folder of the studies cannot be written to: no label is saved, no image added.")
        super().__init__(str(own), auto_reload, read_only=True)
        self._reconcile_datastore()
        if auto_reload:
            with suppress(OSError):  # Too many folders to watch; they are looked at when the server starts.
                self._observer.schedule(self._handler, self._datastore.image_path(), recursive=True)

    def images_dir(self, folder: Path) -> str:
        return str(images_folder(self._studies))

    def save_label(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse it.

        Raises:
            StorageError: always.
        """
        self._refuse("label")

    def add_image(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse it.

        Raises:
            StorageError: always.
        """
        self._refuse("image")

    def _refuse(self, what: str) -> NoReturn:
        raise StorageError(
            f"The folder of the studies cannot be written to, so the {what} was not saved. Ask the operator of the "
            "server to let it write there (baps doctor says what it finds)."
        )


def can_write(folder: str) -> bool:
    """Return whether the server may write into a folder; for root too, a mount may forbid it."""
    return os.access(folder, os.W_OK | os.X_OK)


def _own_folder(studies: Path) -> Path:
    """Make the folder for what the server writes, with a list and with links to the labels of the studies."""
    root = Path(settings.MONAI_LABEL_DATASTORE_CACHE_PATH or Path.home() / ".cache" / "monailabel")
    own = root / "read-only" / hashlib.sha256(str(studies).encode()).hexdigest()[:16]
    try:
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        own.joinpath(".lock").touch()
    except OSError:
        own = Path(tempfile.mkdtemp(prefix="baps-studies-"))
    (own / "labels").mkdir(exist_ok=True)
    for link in (own / "labels").iterdir():
        link.unlink() if link.is_symlink() else link.rmdir()  # What MONAI Label made; nothing is saved there.
    if (studies / "labels").is_dir():
        for tag in (studies / "labels").iterdir():
            if tag.is_dir():
                (own / "labels" / tag.name).symlink_to(tag)
    _copy_list(studies, own)
    return own


def _copy_list(studies: Path, own: Path) -> None:
    """Copy MONAI Label's list, which says who confirmed which label; a list that is broken or absent is made anew."""
    try:
        listed = json.loads((studies / LIST).read_bytes())
        listed |= {"images_dir": str(images_folder(studies)), "labels_dir": "labels"}
    except (OSError, ValueError, TypeError):
        (own / LIST).unlink(missing_ok=True)
        return
    (own / LIST).write_text(json.dumps(listed))
