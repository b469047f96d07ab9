from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from baps.imaging.windowing import Window
from baps.inference.segmenter import Segmenter
from baps.inference.volume_predictor import SlicePredictor, VolumeImage
from baps.prompts.volume_prompts import VolumeBox, VolumePoint, VolumePrompt, VolumeRegion
from baps.registry.store import AdapterStore
from tests.support.bright_pieces import BrightPiecesBlackBox

SHAPE = (48, 48, 16)
CENTRE = (24, 24, 8)
Mask = NDArray[np.bool_]

numbers = itertools.count()


def ball(centre: tuple[float, float, float], radius: float, thick: float = 3.0) -> Mask:
    """A ball in a volume whose slices across the last axis are ``thick`` times as far apart as pixels."""
    i, j, k = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    squares = (i - centre[0]) ** 2 + (j - centre[1]) ** 2 + (thick * (k - centre[2])) ** 2
    return np.asarray(squares < radius**2)


def image(
    bright: Mask, order: Sequence[int] = (0, 1, 2), spacing: tuple[float, ...] | None = (1.0, 1.0, 3.0)
) -> VolumeImage:
    voxels = np.where(bright, 200, 40).astype(np.int16).transpose(order)
    spaced = None if spacing is None else tuple(spacing[axis] for axis in order)
    return VolumeImage(f"test {next(numbers)}", voxels, Window(0, 255), spaced)  # type: ignore[arg-type]


@pytest.fixture
def predictor(tmp_path: Path) -> SlicePredictor:
    return SlicePredictor(Segmenter(BrightPiecesBlackBox(), AdapterStore(tmp_path)))


def predict(
    predictor: SlicePredictor, shown: VolumeImage, prompts: Sequence[VolumePrompt], new: int, mask: Mask | None = None
) -> Mask:
    answer = predictor.predict(shown, prompts, new, np.zeros(shown.shape, bool) if mask is None else mask)
    assert answer.complete
    return answer.mask


def overlap(mask: Mask, target: Mask) -> float:
    return float(2 * (mask & target).sum() / (mask.sum() + target.sum()))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_click_gives_the_object_under_it_in_every_order_of_axes(
    predictor: SlicePredictor, order: tuple[int, ...]
) -> None:
    target = ball(CENTRE, 13)
    voxel = (26, 22, 9)
    shown = image(target, order)
    mask = predict(predictor, shown, [VolumePoint(tuple(voxel[axis] for axis in order), True)], 1)  # type: ignore[arg-type]
    assert mask[tuple(voxel[axis] for axis in order)]
    assert overlap(mask, target.transpose(order)) > 0.95


def test_the_mask_so_far_is_not_changed_in_place(predictor: SlicePredictor) -> None:
    target, other = ball((14, 24, 8), 8), ball((34, 24, 8), 8)
    before, shown = target.copy(), image(target | other)
    mask = predict(predictor, shown, [VolumePoint((34, 24, 8), True)], 1, target)
    assert np.array_equal(before, target)
    assert overlap(mask, target | other) > 0.95


def test_a_click_on_a_missing_part_adds_it_and_keeps_everything_else(predictor: SlicePredictor) -> None:
    first, second = ball((14, 24, 5), 8), ball((34, 24, 11), 8)
    drawn = ball((14, 24, 5), 10) & (np.indices(SHAPE).sum(0) % 2 == 0)  # What no model would answer.
    mask = predict(predictor, image(first | second), [VolumePoint((34, 24, 11), True)], 1, drawn)
    assert np.array_equal(mask & ~second, drawn & ~second)
    assert overlap(mask & second, second) > 0.95


def test_a_click_beside_the_object_removes_the_part_under_it_on_all_slices(predictor: SlicePredictor) -> None:
    right, wrong = ball((14, 24, 8), 9), ball((34, 24, 8), 9)
    mask = predict(predictor, image(right | wrong), [VolumePoint((34, 24, 8), False)], 1, right | wrong)
    assert np.array_equal(mask & right, right)
    assert (mask & wrong).sum() < 0.02 * wrong.sum()


def test_earlier_clicks_on_the_object_are_kept_when_a_part_is_removed(predictor: SlicePredictor) -> None:
    target = ball(CENTRE, 13)
    kept, removed = VolumePoint((24, 24, 7), True), VolumePoint((20, 24, 9), False)
    mask = predict(predictor, image(target), [kept, removed], 1, target)
    assert mask[24, 24, 7]
    assert not mask[20, 24, 9]


def test_clicks_on_several_slices_make_one_object(predictor: SlicePredictor) -> None:
    target = ball(CENTRE, 13)
    clicks = [VolumePoint((24, 24, k), True) for k in (6, 10)]
    assert overlap(predict(predictor, image(target), clicks, 2), target) > 0.95


def test_a_click_on_the_background_gives_itself(predictor: SlicePredictor) -> None:
    mask = predict(predictor, image(ball(CENTRE, 9)), [VolumePoint((3, 3, 3), True)], 1)
    assert mask[3, 3, 3]
    assert mask.sum() < 30


def test_only_clicks_beside_the_object_give_nothing(predictor: SlicePredictor) -> None:
    assert not predict(predictor, image(ball(CENTRE, 9)), [VolumePoint((24, 24, 8), False)], 1).any()


def test_a_box_bounds_the_object(predictor: SlicePredictor) -> None:
    target = ball(CENTRE, 13)
    box = VolumeBox((10, 10, 6), (38, 38, 11), True)
    mask = predict(predictor, image(target), [box], 1)
    inside = np.zeros(SHAPE, bool)
    inside[10:38, 10:38, 6:11] = True
    assert not (mask & ~inside).any()
    assert overlap(mask, target & inside) > 0.95


@pytest.mark.parametrize("across", range(3))
def test_a_flat_box_prompts_across_every_axis(predictor: SlicePredictor, across: int) -> None:
    target = ball(CENTRE, 13)
    low, high = [10, 10, 3], [39, 39, 14]
    low[across], high[across] = CENTRE[across], CENTRE[across] + 1
    for spacing in ((1.0, 1.0, 3.0), (1.0, 1.0, 1.0), None):
        box = VolumeBox((low[0], low[1], low[2]), (high[0], high[1], high[2]), True)
        assert overlap(predict(predictor, image(target, spacing=spacing), [box], 1), target) > 0.9


def test_a_box_beside_the_object_is_erased(predictor: SlicePredictor) -> None:
    target = ball(CENTRE, 13)
    box = VolumeBox((24, 0, 0), (48, 48, 16), False)
    mask = predict(predictor, image(target), [box], 1, target)
    assert np.array_equal(mask[:24], target[:24])
    assert not mask[24:].any()


@pytest.mark.parametrize("across", range(3))
def test_a_scribble_is_part_of_the_object(predictor: SlicePredictor, across: int) -> None:
    target = ball(CENTRE, 13)
    where: list[object] = [slice(20, 29), slice(20, 29), slice(7, 10)]
    where[across] = CENTRE[across]
    scribble = np.zeros(SHAPE, bool)
    scribble[tuple(where)] = True  # type: ignore[index]
    mask = predict(predictor, image(target), [VolumeRegion.of(scribble, (0, 0, 0), False, True)], 1)
    assert overlap(mask, target) > 0.95


def test_a_lasso_on_what_the_model_does_not_see_is_the_object_on_its_slice(predictor: SlicePredictor) -> None:
    lasso = np.zeros(SHAPE, bool)
    lasso[5:15, 5:15, 8] = True
    mask = predict(predictor, image(ball((34, 34, 8), 9)), [VolumeRegion.of(lasso, (0, 0, 0), True, True)], 1)
    assert np.array_equal(mask[:, :, 8], lasso[:, :, 8])


def test_a_lasso_limits_the_answer_on_its_slice(predictor: SlicePredictor) -> None:
    target = ball(CENTRE, 13)
    lasso = np.zeros(SHAPE, bool)
    lasso[10:24, 10:38, 8] = True
    mask = predict(predictor, image(target), [VolumeRegion.of(lasso, (0, 0, 0), True, True)], 1)
    assert mask[14:22, 24, 8].all()
    assert not mask[28:, :, 8].any()


def test_a_model_of_boxes_answers_boxes_and_lassos(tmp_path: Path) -> None:
    predictor = SlicePredictor(Segmenter(BrightPiecesBlackBox(clicks=False), AdapterStore(tmp_path)))
    target = ball(CENTRE, 13)
    lasso = np.zeros(SHAPE, bool)
    lasso[9:40, 9:40, 8] = True
    for prompt in (VolumeBox((10, 10, 8), (38, 38, 9), True), VolumeRegion.of(lasso, (0, 0, 0), True, True)):
        assert overlap(predict(predictor, image(target), [prompt], 1), target) > 0.9


def test_equal_prompts_give_equal_masks(predictor: SlicePredictor) -> None:
    shown = image(ball(CENTRE, 13) | ball((40, 40, 8), 5))
    prompts = [VolumePoint((24, 24, 8), True), VolumePoint((30, 24, 8), False)]
    first = predict(predictor, shown, prompts[:1], 1)
    assert np.array_equal(predict(predictor, shown, prompts, 1, first), predict(predictor, shown, prompts, 1, first))


def test_it_can_be_stopped(predictor: SlicePredictor) -> None:
    shown = image(ball(CENTRE, 13))
    answer = predictor.predict(
        shown, [VolumePoint((24, 24, 8), True)], 1, np.zeros(SHAPE, bool), should_continue=lambda: False
    )
    assert not answer.complete
    assert answer.mask[24, 24, 8]
    assert answer.mask.any((0, 1)).sum() == 1


def test_colour_is_segmented(predictor: SlicePredictor) -> None:
    target = ball(CENTRE, 13)
    voxels = np.repeat(np.where(target, 200, 40).astype(np.uint8)[..., None], 3, -1)
    shown = VolumeImage("in colour", voxels, Window(0, 255, "colour"), (1.0, 1.0, 3.0))
    assert overlap(predict(predictor, shown, [VolumePoint((24, 24, 8), True)], 1), target) > 0.95
