"""NIfTI files of images that the viewers cannot open themselves, or would show in another place than the server."""

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
"""Of where voxels are put: what another version converted is converted again."""


class Conversions:
    """Converts images when they are first asked for, and again when they have changed.

    A DICOM series or object that holds several volumes is noted in an index, so that each can be listed as an image.

    Args:
        folder: where the NIfTI files and the index lie; it is made when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._index: dict[str, tuple[int, list[str]]] = {}
        self._stamp = 0
        self._prepared = False
        self._changing, self._converting = threading.Lock(), KeyedLocks()

    def titles(self, source: Path) -> list[str]:
        """What tells the volumes of a source from each other, as far as it is known that there are several."""
        stamp, titles = self._read_index().get(source.name, (0, []))
        return titles if titles and source.exists() and stamp == _newest(source) else []

    def sources(self) -> list[str]:
        """Names of the sources that held several volumes when they were last read."""
        return list(self._read_index())

    def convert(self, source: Path, image_id: str, number: int | None = None) -> Path:
        """The NIfTI file of a volume.

        Args:
            source: a file, or the folder of a DICOM series.
            image_id: names the NIfTI file.
            number: of the volume in the source, from 1, or None if it holds one.

        Raises:
            SeveralVolumesError: if there are several and none was chosen; they are in the index then.
            InputError: if the source cannot be read.
            StorageError: if the disk is full, or the folder cannot be written.
        """
        target = self._folder / f"{image_id}.nii.gz"
        try:
            self._prepare()
            with self._converting.holding(image_id):  # A second thread would find it half written.
                if target.exists() and target.stat().st_mtime_ns > _newest(source):
                    return target
                try:
                    write_nifti(target, read_volume(source) if number is None else read_dicom(source, number))
                except SeveralVolumesError as error:
                    self._note(source, error.titles)
                    raise
        except OSError as error:
            raise StorageError(
                f"The image {image_id} cannot be converted ({error.strerror}). Make room, and let the server write to "
                f"{FOLDER} in the folder of the studies."
            ) from error
        return target

    def _prepare(self) -> None:
        """Make the folder, and empty it of what another version converted."""
        if self._prepared:
            return
        with self._changing:
            self._folder.mkdir(exist_ok=True)
            version = self._folder / "version"
            if not version.exists() or version.read_text() != _VERSION:
                for old in self._folder.glob("*.nii.gz"):
                    old.unlink(missing_ok=True)
                with atomic_write(version, ".txt") as partial:
                    partial.write_text(_VERSION)
            self._prepared = True

    def _note(self, source: Path, titles: Sequence[str]) -> None:
        with self._changing:
            index = {**self._read_index(), source.name: (_newest(source), list(titles))}
            with atomic_write(self._folder / _INDEX, ".json") as partial:
                partial.write_text(json.dumps(index))

    def _read_index(self) -> dict[str, tuple[int, list[str]]]:
        path = self._folder / _INDEX
        try:
            stamp = path.stat().st_mtime_ns
            if stamp != self._stamp:
                self._index = {
                    name: (int(when), list(titles)) for name, (when, titles) in json.loads(path.read_text()).items()
                }
                self._stamp = stamp
        except (OSError, ValueError, TypeError, AttributeError):
            self._index, self._stamp = {}, 0
        return self._index


def volume_number(image_id: str) -> int | None:
    """The number of the volume that an image is, from its name; None of an image that is all of its source."""
    number = image_id.partition(VOLUME_INFIX)[2]
    return int(number) if number.isdecimal() else None


class SeveralImagesError(InputError):
    """An image turned out to hold several volumes, which are images of their own from then on.

    Attributes:
        images: their names.
    """

    def __init__(self, image_id: str, titles: Sequence[str]) -> None:
        self.images = tuple(volume_id(image_id, number) for number in range(1, len(titles) + 1))
        told = [f"{name}: {title}" for name, title in zip(self.images, titles, strict=True)]
        super().__init__(
            f"{image_id} holds {len(titles)} volumes, which are images of their own now "
            f"({'; '.join(told[:12])}{'; ...' if len(told) > 12 else ''}). Choose one of them."
        )


def _newest(source: Path) -> int:
    paths = (source, *source.iterdir()) if source.is_dir() else (source,)
    return max(path.stat().st_mtime_ns for path in paths)
