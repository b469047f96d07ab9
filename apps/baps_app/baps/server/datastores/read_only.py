"""Datastore of a folder that cannot be written to, such as a read-only mount. Saving is refused."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from monailabel.config import settings

from baps.annotations.history import LIST
from baps.errors import StorageError
from baps.io import images_folder
from baps.server.datastores.folder import StudiesDatastore
from baps.utils.atomic_write import atomic_write

logger = logging.getLogger(__name__)


class ReadOnlyStudies(StudiesDatastore):
    """The images and labels of a folder that is never written to.

    The server's own files, such as the index and the converted series, are in a folder of the server.

    Args:
        folder: Folder of the studies.
        auto_reload: Whether files that are added or removed are noticed.
    """

    def __init__(self, folder: str, auto_reload: bool) -> None:
        self._studies = Path(folder).resolve()
        own = _create_own_folder(self._studies)
        logger.warning("The folder of the studies cannot be written to: no label is saved, no image added.")
        super().__init__(str(own), auto_reload, read_only=True)
        self._reconcile_datastore()

    def images_dir(self, folder: Path) -> str:
        """Return the absolute path of the folder of the images.

        Args:
            folder: Folder of the server, which has no images.
        """
        return str(images_folder(self._studies))

    def save_label(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse to save a label.

        Raises:
            StorageError: always.
        """
        self.check_writable("label")

    def add_image(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse to add an image.

        Raises:
            StorageError: always.
        """
        self.check_writable("image")

    def check_writable(self, what: str) -> NoReturn:
        """Refuse to write.

        Args:
            what: Kind of object that cannot be saved, for the message.

        Raises:
            StorageError: always.
        """
        raise StorageError(
            f"The folder of the studies cannot be written to, so the {what} was not saved. Ask the operator of the "
            "server to make it writable (baps doctor checks it)."
        )


def can_write(folder: str) -> bool:
    """Return whether the server may write to a folder. On a read-only mount, even root may not.

    Args:
        folder: Path of the folder.
    """
    return os.access(folder, os.W_OK | os.X_OK)


def _create_own_folder(studies: Path) -> Path:
    """Create the folder for the server's own files, with an index, and with links to the labels of the studies."""
    root = Path(settings.MONAI_LABEL_DATASTORE_CACHE_PATH or Path.home() / ".cache" / "monailabel")
    own = root / "read-only" / hashlib.sha256(str(studies).encode()).hexdigest()[:16]
    try:
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        own.joinpath(".lock").touch()
    except OSError:
        own = Path(tempfile.mkdtemp(prefix="baps-studies-"))
    _link_labels(studies / "labels", own / "labels")
    _copy_index(studies, own)
    return own


def _link_labels(labels: Path, own: Path) -> None:
    """Link the folders of labels. Correct links stay, because a training may use them while the server starts."""
    own.mkdir(exist_ok=True)
    tags = {tag.name: tag for tag in labels.iterdir() if tag.is_dir()} if labels.is_dir() else {}
    for link in own.iterdir():
        if link.is_symlink() and link.readlink() != tags.get(link.name):
            link.unlink()
        elif not link.is_symlink() and link.name in tags:
            link.rmdir()  # MONAI Label created it before the studies had such a folder.
    for name in tags.keys() - {link.name for link in own.iterdir()}:
        (own / name).symlink_to(tags[name])


def _copy_index(studies: Path, own: Path) -> None:
    """Copy MONAI Label's index, which has who confirmed which label, if it has changed since it was last copied."""
    try:
        content = (studies / LIST).read_bytes()
        listed = {**json.loads(content), "images_dir": str(images_folder(studies)), "labels_dir": "labels"}
    except (OSError, ValueError, TypeError):
        return  # The server creates one.
    copied, digest = own / "copied.sha256", hashlib.sha256(content).hexdigest()
    if copied.is_file() and copied.read_text() == digest:
        return
    with atomic_write(own / LIST, ".json") as partial:
        partial.write_text(json.dumps(listed))
    copied.write_text(digest)
