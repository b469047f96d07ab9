"""Intensity windows: from grey values of any scale to the 256 levels that a black box takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from baps.imaging.volume import Volume

CT_WINDOW = (-160.0, 240.0)
"""Soft tissue, Hounsfield units: level 40, width 400."""

_SAMPLE = 200_000
_NO_TISSUE = -2000


@dataclass(frozen=True)
class Window:
    """Grey values ``low`` and below become 0, ``high`` and above 255. ``source`` says how it was found."""

    low: float
    high: float
    source: str = "given"

    def apply(self, values: NDArray[np.generic]) -> NDArray[np.float32]:
        """Values of any shape to [0, 255], not yet rounded."""
        return ((values.astype(np.float32) - self.low) * (255.0 / (self.high - self.low))).clip(0, 255)

    def record(self) -> dict[str, object]:
        """For the reply and the adapter's record."""
        return asdict(self)


def choose_window(volume: Volume) -> Window:
    """The window of a volume: the soft-tissue window for CT, else the middle 99 % of what is not background.

    CT is told by its scale: in Hounsfield units air is far below zero, and much of an image is air or fat. Colour is
    shown as it is.
    """
    if volume.colour:
        return Window(0.0, 255.0, "colour")
    flat = volume.voxels.reshape(-1)
    sample = flat[:: max(1, flat.size // _SAMPLE)].astype(np.float32)
    # Scanners fill the corners outside their field of view with some value far below air.
    if sample.min() < _NO_TISSUE and sample.max() > sample.min():
        sample = sample[sample > sample.min()]
    if (sample <= -100).mean() > 0.01 and sample.min() >= _NO_TISSUE and sample.max() <= 8000:
        return Window(*CT_WINDOW, "ct")
    shown = sample[sample > sample.min()]
    with np.errstate(over="ignore", invalid="ignore"):
        found = np.percentile(shown if shown.size else sample, (0.5, 99.5))
    low, high = map(float, found if np.isfinite(found).all() else (sample.min(), sample.max()))
    # 1 is nothing beside a large number.
    return Window(low, high if high > low else low + max(1.0, 1e-3 * abs(low)), "percentiles")
