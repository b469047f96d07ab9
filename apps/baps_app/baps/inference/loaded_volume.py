"""Give the segmenter a volume that is in memory already, in place of a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from baps.imaging.volume import Volume
from baps.imaging.windowing import Window


@dataclass(frozen=True)
class LoadedVolume:
    """A volume in memory.

    Attributes:
        key: name of the volume in caches. No other volume may have it.
        volume: the volume.
        window: the window that its slices are shown with.
    """

    key: str
    volume: Volume
    window: Window

    @property
    def name(self) -> str:
        """What messages call it."""
        return "the volume"


Source = Path | LoadedVolume
"""A file or a DICOM series, or a volume in memory."""
