from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from baps.blackbox.volumes.interface import Spacing
from baps.errors import InputError
from baps.imaging.windowing import Window
from baps.inference.volume_model_predictor import ModelPredictor
from baps.inference.volume_predictor import VolumeImage
from baps.inference.volume_segmenter import VolumeSegmenter
from baps.prompts.volume_prompts import VolumeBox, VolumePoint, VolumePrompt
from baps.registry.store import AdapterStore
from tests.support.bright_volumes import BrightVolumesBlackBox

SHAPE = (20, 16, 9)
FIRST, SECOND = (slice(2, 6), slice(2, 6), slice(2, 5)), (slice(12, 17), slice(9, 13), slice(3, 8))
IN_FIRST, IN_SECOND, DARK = (3, 3, 3), (14, 10, 5), (9, 8, 4)
Mask = NDArray[np.bool_]


class StubbornBlackBox(BrightVolumesBlackBox):
    """It answers with the mask that it got."""

    def _predict(
        self, voxels: NDArray[np.generic], spacing: Spacing, prompts: Sequence[VolumePrompt], mask: Mask | None
    ) -> NDArray[np.float32]:
        return np.zeros(SHAPE, np.float32) if mask is None else mask.astype(np.float32)


def marked(*where: tuple[slice, ...]) -> Mask:
    mask = np.zeros(SHAPE, bool)
    for one in where:
        mask[one] = True
    return mask


def image(colour: bool = False) -> VolumeImage:
    voxels = np.where(marked(FIRST, SECOND), 200, 40).astype(np.uint8)
    return VolumeImage("test", np.repeat(voxels[..., None], 3, -1) if colour else voxels, Window(0, 255), (1, 1, 3))


def predictor(black_box: BrightVolumesBlackBox) -> ModelPredictor:
    return ModelPredictor(VolumeSegmenter(lambda: black_box, AdapterStore(Path("no adapters here"))))


def predict(
    black_box: BrightVolumesBlackBox, prompts: Sequence[VolumePrompt], new: int, mask: Mask | None = None, **more: Any
) -> Mask:
    before = np.zeros(SHAPE, bool) if mask is None else mask.copy()
    shown = more.pop("image", None) or image()
    answer = predictor(black_box).predict(shown, prompts, new, before, **more)
    assert np.array_equal(before, np.zeros(SHAPE, bool) if mask is None else mask)
    assert answer.adapter is None
    assert answer.complete
    return answer.mask


def test_the_first_prompt_is_answered_without_a_mask() -> None:
    black_box = BrightVolumesBlackBox()
    click = VolumePoint(IN_FIRST, True)
    assert np.array_equal(predict(black_box, [click], 1), marked(FIRST))
    assert black_box.asked == [([click], None)]


def test_a_later_prompt_goes_with_the_earlier_ones_and_their_mask() -> None:
    black_box = BrightVolumesBlackBox()
    clicks = [VolumePoint(IN_FIRST, True), VolumePoint(IN_SECOND, True)]
    assert np.array_equal(predict(black_box, clicks, 1, marked(FIRST)), marked(FIRST, SECOND))
    ((sent, start),) = black_box.asked
    assert sent == clicks
    assert start is not None
    assert np.array_equal(start, marked(FIRST))


def test_a_model_that_cannot_start_from_a_mask_gets_all_prompts() -> None:
    black_box = BrightVolumesBlackBox(masks=False)
    clicks = [VolumePoint(IN_FIRST, True), VolumePoint(IN_SECOND, True)]
    assert np.array_equal(predict(black_box, clicks, 1, marked(FIRST)), marked(FIRST, SECOND))
    assert black_box.asked[0][1] is None


def test_a_mask_that_somebody_drew_is_corrected() -> None:
    drawn = marked(FIRST, SECOND)
    assert np.array_equal(predict(BrightVolumesBlackBox(), [VolumePoint(IN_SECOND, False)], 1, drawn), marked(FIRST))


@pytest.mark.parametrize("include", [False, True])
def test_the_clicked_voxel_is_right_whatever_the_model_answers(include: bool) -> None:
    start = None if include else marked(FIRST)
    mask = predict(StubbornBlackBox(), [VolumePoint(DARK if include else IN_FIRST, include)], 1, start)
    assert mask[DARK if include else IN_FIRST] == include
    assert mask.sum() == (1 if include else marked(FIRST).sum() - 1)


def test_the_newest_click_on_a_voxel_counts() -> None:
    clicks = [VolumePoint(IN_FIRST, False), VolumePoint(IN_FIRST, True)]
    assert predict(BrightVolumesBlackBox(), clicks, 1, marked(SECOND))[IN_FIRST]


def test_only_prompts_beside_the_object_give_nothing_and_no_prediction() -> None:
    black_box = BrightVolumesBlackBox()
    assert not predict(black_box, [VolumePoint(DARK, False)], 1).any()
    assert black_box.images_queried == 0


def test_a_prompt_that_the_model_does_not_understand_is_refused() -> None:
    black_box = BrightVolumesBlackBox(points=False, boxes=False)
    for mask in (None, marked(SECOND)):
        with pytest.raises(InputError, match="does not understand this prompt. Draw a box in one slice"):
            predict(black_box, [VolumePoint(IN_FIRST, True)], 1, mask)
    assert black_box.images_queried == 0


def test_colour_is_grey_to_the_model() -> None:
    box = VolumeBox((2, 2, 2), (6, 6, 5), True)
    assert np.array_equal(predict(BrightVolumesBlackBox(), [box], 1, image=image(colour=True)), marked(FIRST))


def test_it_can_be_stopped_before_it_asks_the_model() -> None:
    black_box = BrightVolumesBlackBox()
    answer = predictor(black_box).predict(
        image(), [VolumePoint(IN_FIRST, True)], 1, marked(SECOND), should_continue=lambda: False
    )
    assert not answer.complete
    assert np.array_equal(answer.mask, marked(SECOND))
    assert black_box.images_queried == 0


def test_progress_is_reported() -> None:
    steps: list[tuple[int, int]] = []
    predict(BrightVolumesBlackBox(), [VolumePoint(IN_FIRST, True)], 1, progress=lambda *step: steps.append(step))
    assert steps == [(0, 1), (1, 1)]
    assert predictor(BrightVolumesBlackBox()).capabilities.scribbles
