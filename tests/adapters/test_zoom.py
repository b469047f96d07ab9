from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baps.adapters.zoom import Crop, crop_for_prompt, crop_images, paste_crops, prompt_to_crop, size_in_crop
from baps.prompts import Prompt

SIDES = [32, 192, 1024]
SHARES = [0.75, 0.5, 0.35]


@st.composite
def _prompts(draw: st.DrawFn) -> tuple[Prompt, int]:
    image_size = draw(st.sampled_from(SIDES))
    point = st.tuples(*[st.integers(0, image_size - 1).map(float)] * 2)
    positive = tuple(draw(st.lists(point, max_size=4)))
    box = None
    if not positive or draw(st.booleans()):
        (x0, x1), (y0, y1) = (sorted(draw(point)) for _ in range(2))
        box = (x0, y0, x1, y1)
    return Prompt(positive, tuple(draw(st.lists(point, max_size=4))), box), image_size


@given(_prompts(), st.sampled_from(SHARES))
def test_crop_lies_in_the_image_and_contains_the_prompt(prompts_and_size: tuple[Prompt, int], share: float) -> None:
    prompt, image_size = prompts_and_size
    crop = crop_for_prompt(prompt, image_size, share)
    assert min(crop.left, crop.top) >= 0
    assert max(crop.left, crop.top) + crop.size <= image_size
    assert crop.size >= round(share * image_size)
    moved = prompt_to_crop(prompt, crop, image_size)
    corners = [moved.box[:2], moved.box[2:]] if moved.box else []
    for x, y in (*moved.positive, *moved.negative, *corners):
        assert -0.5 <= x <= image_size - 0.5
        assert -0.5 <= y <= image_size - 0.5
    assert len(moved.positive) == len(prompt.positive)
    assert len(moved.negative) <= len(prompt.negative)


@given(_prompts())
def test_zoom_of_1_is_the_whole_image(prompts_and_size: tuple[Prompt, int]) -> None:
    prompt, image_size = prompts_and_size
    crop = crop_for_prompt(prompt, image_size, 1.0)
    assert crop == Crop(0, 0, image_size)
    assert prompt_to_crop(prompt, crop, image_size) is prompt


def test_first_click_is_near_the_centre() -> None:
    assert crop_for_prompt(Prompt(((96.0, 96.0),)), 192, 0.5) == Crop(48, 48, 96)
    assert crop_for_prompt(Prompt(((0.0, 191.0),)), 192, 0.5) == Crop(0, 96, 96)


def test_near_clicks_and_corrections_share_a_crop() -> None:
    first = crop_for_prompt(Prompt(((96.0, 96.0),)), 192, 0.5)
    assert crop_for_prompt(Prompt(((98.0, 95.0),)), 192, 0.5) == first
    assert crop_for_prompt(Prompt(((96.0, 96.0), (120.0, 70.0)), ((5.0, 5.0), (100.0, 100.0))), 192, 0.5) == first


def test_foreground_click_outside_enlarges_the_crop() -> None:
    crop = crop_for_prompt(Prompt(((40.0, 40.0), (160.0, 60.0))), 192, 0.35)
    assert crop.size > 120
    assert crop.left <= 40
    assert crop.left + crop.size > 160


def test_background_clicks_outside_the_crop_are_dropped() -> None:
    prompt = Prompt(((96.0, 96.0),), ((5.0, 5.0), (100.0, 100.0)))
    crop = crop_for_prompt(prompt, 192, 0.5)
    assert len(prompt_to_crop(prompt, crop, 192).negative) == 1


def test_converted_click_is_on_the_same_pixel() -> None:
    image = torch.zeros(1, 1, 192, 192)
    image[0, 0, 80:84, 100:104] = 1
    prompt = Prompt(((101.5, 81.5),))
    crop = crop_for_prompt(prompt, 192, 0.5)
    ((x, y),) = prompt_to_crop(prompt, crop, 192).positive
    crop_pixels = crop_images(image, [crop])[0, 0]
    rows, columns = (crop_pixels > 0.5).nonzero().float().mean(0).tolist()
    assert (columns, rows) == pytest.approx((x, y), abs=0.6)


@pytest.mark.parametrize("share", SHARES)
def test_crop_is_pasted_at_its_position(share: float) -> None:
    mask = torch.zeros(2, 192, 192)
    mask[0, 85:110, 90:118], mask[1, 20:50, 150:170] = 1, 1
    crops = [
        crop_for_prompt(Prompt(((104.0, 97.0),)), 192, share),
        crop_for_prompt(Prompt(((160.0, 35.0),)), 192, share),
    ]
    back = paste_crops(crop_images(mask[:, None], crops)[:, 0], crops, 192)
    assert back.shape == mask.shape
    assert bool(((back > 0.5) == (mask > 0.5)).all())


def test_mask_is_empty_outside_the_crop() -> None:
    crop = Crop(48, 60, 96)
    back = paste_crops(torch.ones(1, 64, 64), [crop], 192)[0]
    assert float(back.sum()) == pytest.approx(96 * 96)
    assert bool((back[60:156, 48:144] == 1).all())


@pytest.mark.parametrize(
    ("size", "crop", "expected"),
    [
        ((64, 48), Crop(0, 0, 64), (64, 48)),
        ((64, 48), Crop(16, 8, 32), (64, 64)),  # The padding begins at the crop's edge.
        ((64, 48), Crop(32, 8, 32), (64, 32)),
        ((20, 64), Crop(0, 16, 16), (16, 64)),
        ((20, 64), Crop(0, 48, 16), (1, 64)),
    ],
)
def test_the_padding_of_an_image_is_that_of_its_crop(
    size: tuple[int, int], crop: Crop, expected: tuple[int, int]
) -> None:
    assert size_in_crop(size, crop, 64) == expected
    shown = torch.zeros(1, 1, 64, 64)
    shown[..., : size[0], : size[1]] = 1
    height, width = expected
    enlarged = crop_images(shown, [crop])[0, 0] > 0.5
    if size[0] > crop.top and size[1] > crop.left:
        assert enlarged[:height, :width].all()
        assert enlarged.sum() == height * width
