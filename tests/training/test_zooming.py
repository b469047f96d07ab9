"""The choice of a zoom, on a black box that sees large objects only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from baps.adapters.visual_prompt import build_visual_prompt
from baps.evaluation.slices import LabelledSlice
from baps.imaging.windowing import Window
from baps.prompts import Prompt
from baps.training.query_log import QueryLog
from baps.training.settings import AdaptationSettings
from baps.training.zooming import ZOOM_SHARES, choose_zoom

SIDE = 64


def _slices(radius: int, count: int = 8) -> list[LabelledSlice]:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    results = []
    for number in range(count):
        target = (rows - 30 - number % 3) ** 2 + (columns - 28 - number % 5) ** 2 <= radius**2
        image = np.repeat((target * np.uint8(200))[..., None], 3, axis=-1)
        results.append(LabelledSlice(f"p{number}", image, target, Window(0, 255)))
    return results


@pytest.fixture
def short_sighted(new_black_box: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Segment bright pixels if they cover a fifth of the image and touch neither the left nor the right edge."""
    black_box = new_black_box()

    def segment(images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        bright = images[..., 0] > 100
        seen = (bright.mean((1, 2)) > 0.2) & ~(bright[:, :, 0] | bright[:, :, -1]).any(1)
        return (bright & seen[:, None, None]).astype(np.float32)

    monkeypatch.setattr(black_box, "_segment", segment)
    return black_box


@pytest.mark.parametrize(("radius", "expected"), [(9, 0.5), (20, 1.0)])
def test_best_zoom_is_chosen(short_sighted: Any, radius: int, expected: float) -> None:
    slices, settings = _slices(radius), AdaptationSettings()
    query_log = QueryLog(None, {}, short_sighted)
    chosen = choose_zoom(short_sighted, build_visual_prompt("basis"), slices, settings, 24, query_log, "run")
    assert chosen == expected
    assert short_sighted.images_queried == 24 == len(ZOOM_SHARES) * 8


def test_whole_image_is_used_without_images(short_sighted: Any) -> None:
    query_log = QueryLog(None, {}, short_sighted)
    prompt, settings = build_visual_prompt("basis"), AdaptationSettings()
    assert choose_zoom(short_sighted, prompt, _slices(9), settings, 2, query_log, "run") == 1.0
    assert short_sighted.images_queried == 0
