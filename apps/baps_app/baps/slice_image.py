"""A slice as the black box sees it. Training and serving both draw it here, so that they never differ."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .geometry import Canvas, Plane
from .intensity import Window
from .volume import Volume


def canvas_image(volume: Volume, plane: Plane, canvas: Canvas, window: Window) -> NDArray[np.uint8]:
    """A slice as the black box sees it, (S, S, 3) uint8."""
    grey = canvas.draw(window.apply(plane.of(volume.voxels))).round().clip(0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)
