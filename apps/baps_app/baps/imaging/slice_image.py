"""A slice as the black box sees it. Training and serving both draw it here, so that they never differ."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from baps.imaging.canvas import Canvas, Plane
from baps.imaging.volume import Volume
from baps.imaging.windowing import Window


def canvas_image(volume: Volume, plane: Plane, canvas: Canvas, window: Window) -> NDArray[np.uint8]:
    """A slice as the black box sees it, (S, S, 3) uint8, RGB; grey in all three channels where the volume is grey."""
    shown = window.apply(plane.of(volume.voxels))
    channels = np.moveaxis(shown, -1, 0) if volume.colour else shown[None]
    levels = [canvas.draw(channel).round().clip(0, 255).astype(np.uint8) for channel in channels]
    return np.stack(levels if volume.colour else levels * 3, axis=-1)
