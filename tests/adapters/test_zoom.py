from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baps.adapters.zoom import View, crop, crop_for_prompt, move, paste
from baps.prompts import Prompt

SIDES = [32, 192, 1024]
SHARES = [0.75, 0.5, 0.35]


@st.composite
def _prompts(draw: st.DrawFn) -> tuple[Prompt, int]:
    side = draw(st.sampled_from(SIDES))
    place = st.tuples(*[st.integers(0, side - 1).map(float)] * 2)
    positive = tuple(draw(st.lists(place, max_size=4)))
    box = None
    if not positive or draw(st.booleans()):
        (x0, x1), (y0, y1) = (sorted(draw(place)) for _ in range(2))
        box = (x0, y0, x1, y1)
    return Prompt(positive, tuple(draw(st.lists(place, max_size=4))), box), side


@given(_prompts(), st.sampled_from(SHARES))
def test_a_view_lies_in_the_image_and_shows_all_that_is_prompted(given: tuple[Prompt, int], share: float) -> None:
    prompt, side = given
    view = crop_for_prompt(prompt, side, share)
    assert min(view.left, view.top) >= 0
    assert max(view.left, view.top) + view.size <= side
    assert view.size >= round(share * side)
    moved = move(prompt, view, side)
    corners = [moved.box[:2], moved.box[2:]] if moved.box else []
    for x, y in (*moved.positive, *moved.negative, *corners):
        assert -0.5 <= x <= side - 0.5
        assert -0.5 <= y <= side - 0.5
    assert len(moved.positive) == len(prompt.positive)
    assert len(moved.negative) <= len(prompt.negative)


@given(_prompts())
def test_the_whole_image_is_one_view(given: tuple[Prompt, int]) -> None:
    prompt, side = given
    view = crop_for_prompt(prompt, side, 1.0)
    assert view == View(0, 0, side)
    assert move(prompt, view, side) is prompt


def test_the_first_click_is_in_the_middle() -> None:
    assert crop_for_prompt(Prompt(((96.0, 96.0),)), 192, 0.5) == View(48, 48, 96)
    assert crop_for_prompt(Prompt(((0.0, 191.0),)), 192, 0.5) == View(0, 96, 96)


def test_near_clicks_and_corrections_inside_see_the_same_part() -> None:
    first = crop_for_prompt(Prompt(((96.0, 96.0),)), 192, 0.5)
    assert crop_for_prompt(Prompt(((98.0, 95.0),)), 192, 0.5) == first
    assert crop_for_prompt(Prompt(((96.0, 96.0), (120.0, 70.0)), ((5.0, 5.0), (100.0, 100.0))), 192, 0.5) == first


def test_a_click_outside_enlarges_the_part() -> None:
    view = crop_for_prompt(Prompt(((40.0, 40.0), (160.0, 60.0))), 192, 0.35)
    assert view.size > 120
    assert view.left <= 40
    assert view.left + view.size > 160


def test_background_clicks_beside_the_part_are_left_out() -> None:
    prompt = Prompt(((96.0, 96.0),), ((5.0, 5.0), (100.0, 100.0)))
    view = crop_for_prompt(prompt, 192, 0.5)
    assert len(move(prompt, view, 192).negative) == 1


def test_a_moved_click_lies_on_the_same_spot() -> None:
    image = torch.zeros(1, 1, 192, 192)
    image[0, 0, 80:84, 100:104] = 1
    prompt = Prompt(((101.5, 81.5),))
    view = crop_for_prompt(prompt, 192, 0.5)
    ((x, y),) = move(prompt, view, 192).positive
    shown = crop(image, [view])[0, 0]
    rows, columns = (shown > 0.5).nonzero().float().mean(0).tolist()
    assert (columns, rows) == pytest.approx((x, y), abs=0.6)


@pytest.mark.parametrize("share", SHARES)
def test_what_was_cropped_is_pasted_back_in_its_place(share: float) -> None:
    mask = torch.zeros(2, 192, 192)
    mask[0, 85:110, 90:118], mask[1, 20:50, 150:170] = 1, 1
    views = [
        crop_for_prompt(Prompt(((104.0, 97.0),)), 192, share),
        crop_for_prompt(Prompt(((160.0, 35.0),)), 192, share),
    ]
    back = paste(crop(mask[:, None], views)[:, 0], views, 192)
    assert back.shape == mask.shape
    assert bool(((back > 0.5) == (mask > 0.5)).all())


def test_around_a_part_there_is_nothing() -> None:
    view = View(48, 60, 96)
    back = paste(torch.ones(1, 64, 64), [view], 192)[0]
    assert float(back.sum()) == pytest.approx(96 * 96)
    assert bool((back[60:156, 48:144] == 1).all())
