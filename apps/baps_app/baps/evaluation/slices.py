"""Labelled slices, in memory or on disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from numpy.typing import NDArray

from baps.blackbox import Size
from baps.errors import BapsError
from baps.imaging.windowing import Window

Item = TypeVar("Item")


@dataclass(frozen=True)
class LabelledSlice:
    """A labelled slice as the black box sees it.

    Attributes:
        patient: the patient.
        image: (S, S, 3) uint8.
        target: mask of the organ, (S, S); never empty.
        window: the window that the image was made with.
        size: height and width of the part of the image that shows the slice, pixels; None if there is no padding.
    """

    patient: str
    image: NDArray[np.uint8]
    target: NDArray[np.bool_]
    window: Window
    size: Size | None = None


@dataclass(frozen=True)
class StoredSlice:
    """A labelled slice on disk; its image and target are read at each access.

    Attributes:
        patient: the patient.
        window: the window that the image was made with.
        size: height and width of the part of the image that shows the slice, pixels; None if there is no padding.
    """

    patient: str
    window: Window
    _file: IO[bytes]
    _offset: int
    _side: int
    _channels: int
    size: Size | None = None

    @property
    def image(self) -> NDArray[np.uint8]:
        """The image, (S, S, 3) uint8."""
        pixels = self._read(self._offset, self._channels * self._side**2).reshape(
            self._side, self._side, self._channels
        )
        return pixels if self._channels == 3 else np.repeat(pixels, 3, axis=-1)

    @property
    def target(self) -> NDArray[np.bool_]:
        """The mask of the organ, (S, S)."""
        offset = self._offset + self._channels * self._side**2
        return self._read(offset, self._side**2).reshape(self._side, self._side).astype(bool)

    def _read(self, offset: int, size: int) -> NDArray[np.uint8]:
        return np.frombuffer(os.pread(self._file.fileno(), size, offset), np.uint8)


AnySlice = LabelledSlice | StoredSlice


def shown_sizes(slices: Sequence[AnySlice]) -> list[Size]:
    """List the size of the part of each image that shows the slice.

    Args:
        slices: labelled slices.

    Returns:
        Height and width of each, pixels; the size of the whole image if there is no padding.
    """
    return [piece.size or (len(piece.target), len(piece.target)) for piece in slices]


SlicesByPatient = Mapping[str, Sequence[AnySlice]]


class SliceFile:
    """Store slices on disk, so that the memory of a training does not grow with the number of volumes.

    The file has no name and is removed when it is no longer used, however the process ends.

    Args:
        folder: folder of the file, or None for the system's folder of temporary files, which may be in memory.

    Raises:
        BapsError: if the file cannot be made.
    """

    def __init__(self, folder: Path | None = None) -> None:
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # lives as long as its slices
        except OSError as error:
            raise BapsError(f"Slices cannot be kept in {folder} ({error.strerror}). Choose another folder.") from error

    def keep(self, piece: LabelledSlice) -> StoredSlice:
        """Write a slice to disk.

        Args:
            piece: the slice.

        Returns:
            The same slice on disk.

        Raises:
            BapsError: if the disk is full.
        """
        offset, image = self._file.seek(0, os.SEEK_END), piece.image
        grey = bool((image == image[..., :1]).all())
        pixels = image[..., :1] if grey else image
        try:
            self._file.write(pixels.tobytes() + piece.target.tobytes())
            self._file.flush()
        except OSError as error:
            raise BapsError(
                f"The slices to train on cannot be kept on disk ({error.strerror}). Free some space."
            ) from error
        return StoredSlice(piece.patient, piece.window, self._file, offset, len(image), pixels.shape[-1], piece.size)


def evenly_spaced(items: Sequence[Item], max_items: int) -> list[Item]:
    """Select evenly spaced items, including the first and the last.

    Args:
        items: the items.
        max_items: maximum number of selected items.

    Returns:
        The selected items, in order.
    """
    if not items or max_items < 1:
        return []
    indices = np.unique(np.linspace(0, len(items) - 1, min(max_items, len(items))).round().astype(int))
    return [items[index] for index in indices]
