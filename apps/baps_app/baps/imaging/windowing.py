"""Map grey values of any scale to the 256 levels that a black box takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from baps.imaging.volume import Volume

CT_WINDOW = (-160.0, 240.0)
"""Soft-tissue window in Hounsfield units: level 40, width 400."""

_SAMPLE_VOXELS = 200_000
_NO_TISSUE = -2000
"""Values below this are padding outside the field of view, in Hounsfield units."""


@dataclass(frozen=True)
class Window:
    """An intensity window.

    Attributes:
        low: grey value that becomes 0, with all below it.
        high: grey value that becomes 255, with all above it.
        source: how the window was chosen.
    """

    low: float
    high: float
    source: str = "given"

    def apply(self, values: NDArray[np.generic]) -> NDArray[np.float32]:
        """Map grey values to levels.

        Args:
            values: grey values, of any shape.

        Returns:
            Levels in [0, 255], not rounded.
        """
        return ((values.astype(np.float32) - self.low) * (255.0 / (self.high - self.low))).clip(0, 255)

    def to_dict(self) -> dict[str, object]:
        """Convert the window to JSON, for the reply and the adapter's record.

        Returns:
            Its fields by name.
        """
        return asdict(self)


def choose_window(volume: Volume) -> Window:
    """Choose the window of a volume: soft tissue for CT, else the middle 99 % of the values that are not background.

    CT is recognised by its values: in Hounsfield units air is far below zero, and much of an image is air or fat.
    Colour is shown unchanged.

    Args:
        volume: the volume.

    Returns:
        The window.
    """
    if volume.colour:
        return Window(0.0, 255.0, "colour")
    flat = volume.voxels.reshape(-1)
    sample = flat[:: max(1, flat.size // _SAMPLE_VOXELS)].astype(np.float32)
    # Scanners fill the corners outside their field of view with a value far below air.
    if sample.min() < _NO_TISSUE and sample.max() > sample.min():
        sample = sample[sample > sample.min()]
    if (sample <= -100).mean() > 0.01 and sample.min() >= _NO_TISSUE and sample.max() <= 8000:
        return Window(*CT_WINDOW, "ct")
    shown = sample[sample > sample.min()]
    with np.errstate(over="ignore", invalid="ignore"):
        bounds = np.percentile(shown if shown.size else sample, (0.5, 99.5))
    low, high = map(float, bounds if np.isfinite(bounds).all() else (sample.min(), sample.max()))
    # Adding 1 to a large number may not change it.
    return Window(low, high if high > low else low + max(1.0, 1e-3 * abs(low)), "percentiles")
