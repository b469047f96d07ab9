"""Draw a slice as the black box sees it. Training and serving both use this function, so that they never differ."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from baps.imaging.canvas import Canvas, Plane
from baps.imaging.volume import Volume
from baps.imaging.windowing import Window


def canvas_image(volume: Volume, plane: Plane, canvas: Canvas, window: Window) -> NDArray[np.uint8]:
    """Draw a slice of a volume on its canvas, in the grey levels of a window.

    Args:
        volume: the volume.
        plane: the slice.
        canvas: position of the slice on the canvas.
        window: intensity window.

    Returns:
        RGB image, (S, S, 3) uint8, where S is the size of the canvas. Grey values are repeated in all three channels.
    """
    shown = window.apply(plane.extract(volume.voxels))
    channels = np.moveaxis(shown, -1, 0) if volume.colour else shown[None]
    levels = [canvas.draw(channel).round().clip(0, 255).astype(np.uint8) for channel in channels]
    return np.stack(levels if volume.colour else levels * 3, axis=-1)
