from __future__ import annotations

import numpy as np

from baps.imaging.canvas import Canvas, Plane
from baps.imaging.slice_image import canvas_image
from baps.imaging.volume import Volume
from baps.imaging.windowing import Window, choose_window

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def test_slice_image_by_hand() -> None:
    volume = Volume(np.array([[-500, 0], [100, 900]], np.int16)[:, :, None], LPS)
    plane = Plane(2, 0)
    image = canvas_image(volume, plane, Canvas.fit(volume, plane, 2), Window(0, 300))
    assert image.shape == (2, 2, 3)
    assert image.dtype == np.uint8
    # Rows run along J and columns along I: [[-500, 100], [0, 900]].
    for channel in range(3):
        assert image[..., channel].tolist() == [[0, 85], [0, 255]]


def test_levels_are_rounded_not_truncated() -> None:
    volume = Volume(np.array([[[0.6]], [[99.4]]], np.float32), np.eye(4))
    plane = Plane(2, 0)
    image = canvas_image(volume, plane, Canvas(2, 1, 2, 1, 2), Window(0, 255))
    assert image[..., 0].tolist() == [[1, 99], [0, 0]]


def test_colour_is_kept() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 1, 3)).astype(np.uint8)
    volume, plane = Volume(pixels, LPS), Plane(2, 0)
    image = canvas_image(volume, plane, Canvas.fit(volume, plane, 4), choose_window(volume))
    np.testing.assert_array_equal(image, pixels[:, :, 0].swapaxes(0, 1))
