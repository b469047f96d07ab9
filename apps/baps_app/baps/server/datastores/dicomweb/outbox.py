"""Outbox: labels that are kept on this server until the PACS has accepted them."""

from __future__ import annotations

from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from baps.utils.atomic_write import atomic_write


class Outbox:
    """DICOM objects in a folder, one file each, named by the time at which they were created.

    An object that is sent again has the same UIDs, so that a PACS does not store it twice.

    Args:
        folder: Folder of the objects, which is created when it is needed. Only the server's user may read it, because
            the objects name patients.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, label: Dataset) -> Path:
        """Add an object before it is sent.

        Args:
            label: The object.

        Returns:
            Its file.

        Raises:
            OSError: if the disk is full.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        created = f"{label.SeriesDate}{label.SeriesTime}"
        file = self.folder / f"{created}-{label.SOPInstanceUID}.dcm"
        with atomic_write(file, mode=0o600) as partial:
            label.save_as(partial, write_like_original=False)
        return file

    def files(self) -> list[Path]:
        """Return the files of the objects that are to be sent, the oldest first."""
        return sorted(self.folder.glob("*.dcm"))

    def rejected(self) -> list[Path]:
        """Return the files of the objects that are not sent again, the oldest first."""
        return sorted(self.folder.glob("*.rejected"))

    def read(self, file: Path) -> Dataset:
        """Read an object.

        Args:
            file: File of the object.

        Raises:
            InvalidDicomError: if the file was damaged.
        """
        return pydicom.dcmread(file)

    def reject(self, file: Path) -> None:
        """Keep an object, as ``*.rejected``, without sending it again.

        Args:
            file: File of the object.
        """
        file.rename(file.with_suffix(".rejected"))

    def remove(self, file: Path) -> None:
        """Remove an object that the PACS has accepted.

        Args:
            file: File of the object.
        """
        file.unlink(missing_ok=True)
