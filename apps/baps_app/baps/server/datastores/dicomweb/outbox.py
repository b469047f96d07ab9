"""Labels that a PACS has not taken yet: kept on this machine until it has."""

from __future__ import annotations

from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from baps.utils.atomic_write import atomic_write


class Outbox:
    """DICOM objects in a folder, a file each, by the time they were made; sent again, they are the same objects.

    Args:
        folder: made when it is needed. Only the server's user may look into it, for the objects name patients.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, label: Dataset) -> Path:
        """Keep an object before it is sent; its file.

        Raises:
            OSError: if the disk is full.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = f"{label.SeriesDate}{label.SeriesTime}"
        file = self.folder / f"{made}-{label.SOPInstanceUID}.dcm"
        with atomic_write(file, mode=0o600) as partial:
            label.save_as(partial, write_like_original=False)
        return file

    def files(self) -> list[Path]:
        """Those that are kept, the oldest first."""
        return sorted(self.folder.glob("*.dcm"))

    def set_aside(self, file: Path) -> None:
        """Keep one without sending it again."""
        file.rename(file.with_suffix(".rejected"))

    def remove(self, file: Path) -> None:
        """Forget one that the PACS has."""
        file.unlink(missing_ok=True)

    def read(self, file: Path) -> Dataset:
        """One of them."""
        return pydicom.dcmread(file)
