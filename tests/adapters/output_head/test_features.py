"""The features of the output head agree with values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from baps.adapters.output_head import FEATURES, GRID, head_features
from baps.adapters.output_head.features import to_logits
from baps.prompts import Prompt

CLICK = Prompt(((20.0, 30.0),))
ODDS, GREY, NEAR, FAR, DISTANCE, NEAR_NOT, FAR_NOT, BOX, AREA = 0, slice(5, 8), 23, 24, 25, 26, 27, 28, 29
"""Indices of some features."""


def _images(side: int, count: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(seed)).float()


def _answer(side: int, count: int = 1, seed: int = 1) -> torch.Tensor:
    return torch.rand((count, side, side), generator=torch.Generator().manual_seed(seed))


def _features_of(prompt: Prompt, side: int = GRID) -> torch.Tensor:
    """Compute the features of some image and mask, (FEATURES, GRID, GRID)."""
    return head_features(_images(side), _answer(side), [prompt])[0]


def test_log_odds_are_bounded() -> None:
    bound = math.log(0.998 / 0.002)
    result = to_logits(torch.tensor([0.0, 0.001, 0.5, 0.75, 1.0]))
    assert result.tolist() == pytest.approx([-bound, -bound, 0, math.log(3), bound], abs=1e-4)


def test_first_feature_is_a_third_of_the_log_odds() -> None:
    """The training of the head starts from this feature."""
    answer = _answer(GRID)
    torch.testing.assert_close(
        head_features(_images(GRID), answer, [CLICK])[:, ODDS], torch.logit(answer.clamp(0.002, 0.998)) / 3
    )


def test_features_contain_the_image() -> None:
    images = _images(GRID)
    features = head_features(images, _answer(GRID), [CLICK])
    torch.testing.assert_close(features[:, GREY], 3 * (images / 255 - 0.4))


@pytest.mark.parametrize(("side", "x", "y"), [(64, 20, 30), (32, 10, 15), (128, 41, 3), (1024, 1000, 8), (100, 50, 7)])
def test_distances_to_a_click_are_in_cells(side: int, x: float, y: float) -> None:
    result = _features_of(Prompt(((x, y),)), side)
    scale = GRID / side
    column, row = (x + 0.5) * scale - 0.5, (y + 0.5) * scale - 0.5
    for i, j in ((0, 0), (10, 50), (63, 63), (round(row), round(column))):
        distance = min(math.hypot(j - column, i - row), 54)
        assert float(result[DISTANCE, i, j]) == pytest.approx(distance / 27, abs=1e-4)
        assert float(result[NEAR, i, j]) == pytest.approx(math.exp(-distance / 3), abs=1e-4)
        assert float(result[FAR, i, j]) == pytest.approx(math.exp(-distance / 10), abs=1e-4)


def test_distance_is_to_the_nearest_click() -> None:
    first, second = Prompt(((5.0, 5.0),)), Prompt(((60.0, 40.0),))
    both = _features_of(Prompt((*first.positive, *second.positive)))[DISTANCE]
    assert torch.equal(both, torch.minimum(_features_of(first)[DISTANCE], _features_of(second)[DISTANCE]))


def test_background_clicks_have_separate_distances() -> None:
    without, result = _features_of(CLICK), _features_of(Prompt(CLICK.positive, ((50.0, 10.0),)))
    assert float(without[NEAR_NOT].max()) == pytest.approx(math.exp(-54 / 3))
    assert float(without[FAR_NOT].max()) == pytest.approx(math.exp(-54 / 10))
    assert float(result[NEAR_NOT, 10, 50]) == 1
    assert float(result[FAR_NOT, 10, 53]) == pytest.approx(math.exp(-3 / 10))
    assert torch.equal(result[NEAR : DISTANCE + 1], without[NEAR : DISTANCE + 1])


@pytest.mark.parametrize("side", [64, 32, 128, 1024])
def test_box_map_by_hand(side: int) -> None:
    """The box covers cells whose centres lie from a quarter to three quarters across, and in the upper half."""
    box = (side / 4, 0.0, side * 3 / 4 - 1, side / 2 - 1)
    result = _features_of(Prompt(box=box), side)[BOX]
    expected = torch.full((GRID, GRID), -1.0)
    expected[:32, 16:48] = 1
    # If a cell is smaller than a pixel, the centres of the outermost cells lie beyond the centre of the last pixel.
    sure = torch.ones_like(expected, dtype=torch.bool)
    if side < GRID:
        sure[[0, 31, 32], :] = False
        sure[:, [15, 16, 47, 48]] = False
    assert torch.equal(result[sure], expected[sure])
    assert set(result.unique().tolist()) == {-1.0, 1.0}


def test_box_map_is_zero_without_a_box() -> None:
    assert not _features_of(CLICK)[BOX].any()


def test_centre_of_a_box_counts_as_a_click() -> None:
    boxed, clicked = _features_of(Prompt(box=(10.0, 20.0, 30.0, 41.0))), _features_of(Prompt(((20.0, 30.5),)))
    rest = [n for n in range(FEATURES) if n != BOX]
    assert torch.equal(boxed[rest], clicked[rest])
    both = _features_of(Prompt(((5.0, 5.0),), box=(10.0, 20.0, 30.0, 41.0)))
    assert torch.equal(both[DISTANCE], _features_of(Prompt(((5.0, 5.0),)))[DISTANCE])


def test_area_is_that_of_the_mask() -> None:
    answer = torch.zeros(1, GRID, GRID)
    answer[0, :32, :32] = 1
    result = head_features(_images(GRID), answer, [CLICK])[0, AREA]
    assert float(result.min()) == float(result.max()) == pytest.approx(3 * 0.5, abs=1e-3)


def test_dissimilarity_to_the_click() -> None:
    """The click is in the dark half of the image; only the bright half is dissimilar to it."""
    images = torch.full((1, 3, GRID, GRID), 50.0)
    images[..., 32:] = 200
    unlike = head_features(images, _answer(GRID), [Prompt(((10.0, 30.0),))])[0, 14]
    assert float(unlike[:, :30].max()) < 0.01
    torch.testing.assert_close(unlike[:, 34:], torch.full((GRID, 30), 6 * 150 / 255), atol=0.01, rtol=0)


def _check(features: torch.Tensor, count: int) -> None:
    assert features.shape == (count, FEATURES, GRID, GRID)
    assert not features.requires_grad
    assert bool(torch.isfinite(features).all())
    assert float(features.abs().max()) < 40


@pytest.mark.parametrize("side", [32, 33, 50, 64, 96, 100, 224, 1024])
def test_features_are_always_finite(side: int) -> None:
    """One batch combines every kind of prompt with every kind of mask and image."""
    last = side - 1.0
    prompts = [
        Prompt(box=(2.0, 3.0, last - 2, last - 5)),
        Prompt(box=(7.0, 7.0, 7.0, 7.0)),
        Prompt(((4.0, 9.0),)),
        Prompt(((last, last),), ((0.0, 0.0),)),
        Prompt(((4.0, 9.0), (5.0, last)), ((last, 1.0),), (0.0, 0.0, last, last)),
    ]
    answers = torch.tensor([0.0, 1.0, 0.0, 0.5])[:, None, None].expand(-1, side, side).clone()
    answers[2, side // 2, side // 3] = 1  # One pixel.
    images = torch.cat([torch.zeros(1, 3, side, side), torch.full((1, 3, side, side), 255.0), _images(side)])
    for image in images:
        rows = [(answer, prompt) for answer in answers for prompt in prompts]
        given_answers = torch.stack([answer for answer, _ in rows])
        features = head_features(image.expand(len(rows), -1, -1, -1), given_answers, [prompt for _, prompt in rows])
        _check(features, len(rows))


@given(st.data())
def test_any_prompt_on_any_canvas_has_features(data: st.DataObject) -> None:
    side = data.draw(st.integers(32, 160))
    coordinate = st.floats(0, side - 1)
    points = st.tuples(coordinate, coordinate)
    x0, y0 = data.draw(points)
    box = (x0, y0, data.draw(st.floats(x0, side - 1)), data.draw(st.floats(y0, side - 1)))
    positive = tuple(data.draw(st.lists(points, max_size=3)))
    prompt = Prompt(
        positive, tuple(data.draw(st.lists(points, max_size=3))), None if positive and data.draw(st.booleans()) else box
    )
    seed = data.draw(st.integers(0, 99))
    answer = (_answer(side, seed=seed) - data.draw(st.floats(0, 1))).clamp(0, 1)
    _check(head_features(_images(side, seed=seed), answer, [prompt]), 1)


def test_rows_of_a_batch_do_not_mix() -> None:
    images, answers = _images(96, 3), _answer(96, 3)
    prompts = [CLICK, Prompt(box=(3.0, 4.0, 50.0, 60.0)), Prompt(((9.0, 9.0),), ((80.0, 80.0),))]
    batch = head_features(images, answers, prompts)
    for row, prompt in enumerate(prompts):
        alone = head_features(images[row : row + 1], answers[row : row + 1], [prompt])
        torch.testing.assert_close(alone[0], batch[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("factor", [2, 4, 16])
def test_features_do_not_depend_on_the_canvas_size(factor: int) -> None:
    """Splitting each pixel of image, mask, clicks and box into several changes nothing."""
    prompt = Prompt(((20.0, 30.0), (40.0, 9.0)), ((50.0, 51.0),), (3.0, 4.0, 44.0, 52.0))
    images, answer = _images(GRID), _answer(GRID)
    larger = head_features(
        F.interpolate(images, scale_factor=factor),
        F.interpolate(answer[None], scale_factor=factor)[0],
        [prompt.scaled(factor, factor)],
    )
    torch.testing.assert_close(larger, head_features(images, answer, [prompt]), atol=1e-3, rtol=1e-3)


def test_mask_on_the_grid_gives_the_same_features() -> None:
    """Masks are stored at the size of the grid for training; later they have the size of the canvas."""
    images, answer = _images(128), _answer(128)
    at_grid = F.adaptive_avg_pool2d(answer[:, None], GRID)[:, 0]
    assert torch.equal(head_features(images, answer, [CLICK]), head_features(images, at_grid, [CLICK]))
