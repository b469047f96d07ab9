from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from baps.adapters.adapter import Adapter, segment_adapted, segment_cached
from baps.adapters.click_consistency import count_violated, fall_back_on_violated_clicks
from baps.adapters.output_head import OutputHead
from baps.adapters.visual_prompt import VisualPrompt, build_visual_prompt
from baps.adapters.visual_prompt.basis import BasisVisualPrompt
from baps.blackbox import BlackBox
from baps.evaluation.interactive import build_segment_function
from baps.prompts import Prompt

CLICKS = Prompt(((20.0, 10.0), (30.0, 10.0)), ((50.0, 40.0),))
LEFT, RIGHT, FALSE = (20, 10), (30, 10), (50, 40)


def _answer(*inside: tuple[int, int]) -> NDArray[np.float32]:
    """Make a mask of 7 x 7 squares around some points (X, Y) of 96 x 72 pixels; two pixels are the tolerance."""
    answer = np.full((72, 96), 0.1, np.float32)
    for x, y in inside:
        answer[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4] = 0.9
    return answer


@pytest.mark.parametrize(
    ("inside", "wrong"),
    [
        ([LEFT, RIGHT], 0),
        ([LEFT], 1),
        ([], 2),
        ([FALSE], 3),
        ([LEFT, FALSE], 2),
        ([(25, 10)], 0),  # Two pixels from both squares.
        ([(20, 5), RIGHT], 0),
        ([(20, 4), RIGHT], 1),
        ([LEFT, RIGHT, (52, 40)], 0),  # Two pixels from the left edge of the square.
        ([LEFT, RIGHT, (51, 40)], 1),
    ],
)
def test_clicks_that_a_mask_violates_are_counted(inside: list[tuple[int, int]], wrong: int) -> None:
    assert count_violated(_answer(*inside), CLICKS) == wrong


def test_click_on_the_edge_is_inside_the_image() -> None:
    corners = Prompt(((-0.5, -0.5), (95.5, 71.5)))
    assert count_violated(_answer((0, 0), (95, 71)), corners) == 0
    assert count_violated(_answer(), corners) == 2
    assert count_violated(_answer(), Prompt(box=(1.0, 1.0, 3.0, 3.0))) == 0


def _dark() -> VisualPrompt:
    """Make a visual prompt that turns every image black."""
    visual_prompt = build_visual_prompt("basis")
    assert isinstance(visual_prompt, BasisVisualPrompt)
    with torch.no_grad():
        visual_prompt.head.bias.view(3, 4)[:, 0] = -2.0
    return visual_prompt


@pytest.fixture
def new_segment() -> Callable[..., tuple[Callable[[Adapter | None], NDArray[np.float32]], list[Adapter | None]]]:
    """Make a function that returns masks in turn, and the list of adapters that it was called with."""

    def make(*answers: NDArray[np.float32]) -> Any:
        left: Iterator[NDArray[np.float32]] = iter(answers)
        queries: list[Adapter | None] = []

        def segment(adapter_: Adapter | None) -> NDArray[np.float32]:
            queries.append(adapter_)
            return next(left)

        return segment, queries

    return make


GOOD, HALF, OTHER_HALF, BAD, WORSE = (_answer(*squares) for squares in ([LEFT, RIGHT], [LEFT], [RIGHT], [], [FALSE]))


@pytest.mark.parametrize(
    ("first", "others", "expected", "queried"),
    [
        (GOOD, [], GOOD, 0),
        (HALF, [GOOD], GOOD, 1),
        (HALF, [OTHER_HALF, GOOD], GOOD, 2),
        (BAD, [HALF, GOOD], GOOD, 2),
        (BAD, [HALF, OTHER_HALF], HALF, 2),
        (BAD, [BAD.copy(), WORSE], BAD, 2),
        (WORSE, [GOOD], GOOD, 1),
    ],
)
def test_a_mask_that_violates_more_clicks_is_replaced(
    new_segment: Callable[..., Any],
    first: NDArray[np.float32],
    others: list[NDArray[np.float32]],
    expected: NDArray[np.float32],
    queried: int,
) -> None:
    adapter = Adapter(_dark(), zoom=0.5)
    segment, seen = new_segment(*others)
    answer, used = fall_back_on_violated_clicks(first, adapter, CLICKS, segment)
    np.testing.assert_array_equal(answer, expected)
    assert len(seen) == queried
    assert all(adapter_ is not adapter for adapter_ in seen)
    assert (used is adapter) == (answer is first)


def test_without_an_adapter_there_is_no_fallback(new_segment: Callable[..., Any]) -> None:
    segment, queried = new_segment()
    answer, used = fall_back_on_violated_clicks(BAD, None, CLICKS, segment)
    assert answer is BAD
    assert used is None
    assert queried == []


@pytest.mark.parametrize("first", [Prompt(((20.0, 10.0),)), Prompt(box=(10.0, 5.0, 40.0, 15.0))])
def test_the_mask_of_a_first_prompt_is_kept(new_segment: Callable[..., Any], first: Prompt) -> None:
    segment, queried = new_segment()
    assert fall_back_on_violated_clicks(BAD, Adapter(_dark()), first, segment)[0] is BAD
    assert queried == []


def test_the_fallback_of_a_bare_visual_prompt_is_the_unadapted_model(new_segment: Callable[..., Any]) -> None:
    segment, queried = new_segment(GOOD)
    assert fall_back_on_violated_clicks(BAD, Adapter(_dark()), CLICKS, segment)[1] is None
    assert queried == [None]


def test_the_first_fallback_keeps_head_and_zoom(lively_head: OutputHead) -> None:
    adapter = Adapter(_dark(), lively_head, 0.5)
    plain, nothing = adapter.fallbacks()
    assert nothing is None
    assert plain is not None
    assert plain.head is lively_head
    assert plain.zoom == 0.5
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    crops = adapter.crop(pixels, [Prompt(((16.0, 16.0),))])
    np.testing.assert_array_equal(
        plain.transform_images(crops), Adapter(plain.visual_prompt, zoom=0.5).transform_images(crops)
    )
    assert (adapter.transform_images(crops) == 0).all()
    assert (plain.transform_images(crops) > 0).any()


def test_more_clicks_reach_the_unadapted_model(new_black_box: Callable[..., Any]) -> None:
    """The visual prompt hides everything; the unadapted model segments what is bright."""
    image = np.full((32, 32, 3), 40, np.uint8)
    image[8:24, 8:24] = 220
    segment = build_segment_function(new_black_box(), Adapter(_dark()), image)
    box, clicked = Prompt(box=(8.0, 8.0, 23.0, 23.0)), Prompt(((10.0, 10.0),), box=(8.0, 8.0, 23.0, 23.0))
    dark, corrected = segment([box, clicked])
    assert not (dark > 0.5).any()
    np.testing.assert_array_equal(corrected > 0.5, image[..., 0] > 128)


def test_both_halves_give_the_same_as_one_call(bundled: BlackBox, lively_head: OutputHead) -> None:
    image = np.random.default_rng(1).integers(0, 256, (192, 192, 3), np.uint8)
    prompt = Prompt(((60.0, 90.0),), ((150.0, 40.0),))
    for adapter in (None, Adapter(build_visual_prompt("basis"), lively_head, 0.5)):
        halves = segment_cached(bundled, adapter, image, prompt, lambda _, encode: encode())
        whole = segment_adapted(bundled, adapter, image[None], [prompt])[0]
        np.testing.assert_allclose(halves, whole, atol=1e-4)
