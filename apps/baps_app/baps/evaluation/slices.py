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

from baps.errors import BapsError
from baps.imaging.windowing import Window

Item = TypeVar("Item")


@dataclass(frozen=True)
class LabelledSlice:
    """A slice as the black box sees it.

    Attributes:
        patient: whom it shows.
        image: (S, S, 3) uint8.
        truth: (S, S) where the organ is; never empty.
        window: how grey values became levels.
    """

    patient: str
    image: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    window: Window


@dataclass(frozen=True)
class StoredSlice:
    """A labelled slice on disk, read whenever its image or truth is asked for; otherwise as ``LabelledSlice``."""

    patient: str
    window: Window
    _file: IO[bytes]
    _place: int
    _side: int
    _channels: int

    @property
    def image(self) -> NDArray[np.uint8]:
        """(S, S, 3) uint8."""
        pixels = self._read(self._place, self._channels * self._side**2).reshape(self._side, self._side, self._channels)
        return pixels if self._channels == 3 else np.repeat(pixels, 3, axis=-1)

    @property
    def truth(self) -> NDArray[np.bool_]:
        """(S, S) where the organ is."""
        place = self._place + self._channels * self._side**2
        return self._read(place, self._side**2).reshape(self._side, self._side).astype(bool)

    def _read(self, place: int, size: int) -> NDArray[np.uint8]:
        return np.frombuffer(os.pread(self._file.fileno(), size, place), np.uint8)


AnySlice = LabelledSlice | StoredSlice

SlicesByPatient = Mapping[str, Sequence[AnySlice]]


class SliceFile:
    """Keeps slices on disk, so that the memory for a training does not grow with the number of volumes.

    The file has no name and goes when it is no longer used, however the process ends.

    Args:
        folder: to make it in, or None for the system's, which may lie in memory.
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

        Raises:
            BapsError: if the disk is full.
        """
        place, image = self._file.seek(0, os.SEEK_END), piece.image
        grey = bool((image == image[..., :1]).all())
        pixels = image[..., :1] if grey else image
        try:
            self._file.write(pixels.tobytes() + piece.truth.tobytes())
            self._file.flush()
        except OSError as error:
            raise BapsError(
                f"The slices to train on cannot be kept on disk ({error.strerror}). Free some space."
            ) from error
        return StoredSlice(piece.patient, piece.window, self._file, place, len(image), pixels.shape[-1])


def evenly_spaced(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of the items, the first and the last among them."""
    places = np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int))
    return [items[place] for place in places]
