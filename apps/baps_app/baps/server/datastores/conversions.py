"""Convert images to NIfTI if the viewers cannot open them, or would show them in another place than the server does."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

from baps.errors import InputError, StorageError
from baps.io import VOLUME_INFIX, SeveralVolumesError, read_dicom, read_volume, volume_id, write_nifti
from baps.utils.atomic_write import atomic_write
from baps.utils.keyed_locks import KeyedLocks

FOLDER = ".converted"
_INDEX = "volumes.json"

_VERSION = "2"
"""Version of the converted geometry. Files of another version are converted again."""


class Conversions:
    """Converts images when they are first read, and again when they have changed.

    A DICOM series or object that holds several volumes is recorded in an index, so that each volume can be listed as an
    image.

    Args:
        folder: Folder of the NIfTI files and the index; it is created when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._index: dict[str, tuple[int, list[str]]] = {}
        self._index_mtime = 0
        self._prepared = False
        self._folder_lock, self._image_locks = threading.Lock(), KeyedLocks()

    def volume_titles(self, source: Path) -> list[str]:
        """Return the titles of the volumes of a source; none if it holds one volume, or was not read yet.

        Args:
            source: File, or folder of a DICOM series.
        """
        mtime, titles = self._read_index().get(source.name, (0, []))
        return titles if titles and source.exists() and mtime == _newest_mtime(source) else []

    def sources(self) -> list[str]:
        """Return the names of the sources that held several volumes when they were last read."""
        return list(self._read_index())

    def convert(self, source: Path, image_id: str, number: int | None = None) -> Path:
        """Return the NIfTI file of a volume, converted if it is missing or older than its source.

        Args:
            source: File, or folder of a DICOM series.
            image_id: Name of the image, which becomes the name of the NIfTI file.
            number: Number of the volume in the source, from 1, or None if it holds one volume.

        Raises:
            SeveralVolumesError: if the source holds several volumes and no number was given; the index has them then.
            InputError: if the source cannot be read.
            StorageError: if the disk is full, or the folder cannot be written to.
        """
        target = self._folder / f"{image_id}.nii.gz"
        try:
            self._prepare()
            with self._image_locks.holding(image_id):  # Otherwise another thread could read an incomplete file.
                if target.exists() and target.stat().st_mtime_ns > _newest_mtime(source):
                    return target
                try:
                    write_nifti(target, read_volume(source) if number is None else read_dicom(source, number))
                except SeveralVolumesError as error:
                    self._add_to_index(source, error.titles)
                    raise
        except OSError as error:
            raise StorageError(
                f"The image {image_id} cannot be converted ({error.strerror}). Make room, and let the server write to "
                f"{FOLDER} in the folder of the studies."
            ) from error
        return target

    def _prepare(self) -> None:
        """Create the folder, and remove files of another version from it."""
        if self._prepared:
            return
        with self._folder_lock:
            self._folder.mkdir(exist_ok=True)
            version = self._folder / "version"
            if not version.exists() or version.read_text() != _VERSION:
                for old in self._folder.glob("*.nii.gz"):
                    old.unlink(missing_ok=True)
                with atomic_write(version, ".txt") as partial:
                    partial.write_text(_VERSION)
            self._prepared = True

    def _add_to_index(self, source: Path, titles: Sequence[str]) -> None:
        with self._folder_lock:
            index = {**self._read_index(), source.name: (_newest_mtime(source), list(titles))}
            with atomic_write(self._folder / _INDEX, ".json") as partial:
                partial.write_text(json.dumps(index))

    def _read_index(self) -> dict[str, tuple[int, list[str]]]:
        """Return, by name of the source, its time of change in ns and the titles of its volumes."""
        path = self._folder / _INDEX
        try:
            mtime = path.stat().st_mtime_ns
            if mtime != self._index_mtime:
                self._index = {
                    name: (int(when), list(titles)) for name, (when, titles) in json.loads(path.read_text()).items()
                }
                self._index_mtime = mtime
        except (OSError, ValueError, TypeError, AttributeError):
            self._index, self._index_mtime = {}, 0
        return self._index


def volume_number(image_id: str) -> int | None:
    """Return the number of the volume of an image, or None if the image is all of its source.

    Args:
        image_id: Name of the image.
    """
    number = image_id.partition(VOLUME_INFIX)[2]
    return int(number) if number.isdecimal() else None


class SeveralImagesError(InputError):
    """An image holds several volumes, which are images of their own now.

    Args:
        image_id: Name of the image.
        titles: Titles of its volumes.

    Attributes:
        images: Names of the new images.
    """

    def __init__(self, image_id: str, titles: Sequence[str]) -> None:
        self.images = tuple(volume_id(image_id, number) for number in range(1, len(titles) + 1))
        listed = [f"{name}: {title}" for name, title in zip(self.images, titles, strict=True)]
        super().__init__(
            f"{image_id} holds {len(titles)} volumes, which are images of their own now "
            f"({'; '.join(listed[:12])}{'; ...' if len(listed) > 12 else ''}). Choose one of them."
        )


def _newest_mtime(source: Path) -> int:
    """Return the newest time of change of a file, or of a folder and its files, in ns."""
    paths = (source, *source.iterdir()) if source.is_dir() else (source,)
    return max(path.stat().st_mtime_ns for path in paths)
