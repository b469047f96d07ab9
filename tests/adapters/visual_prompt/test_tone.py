from __future__ import annotations

import pytest
import torch

from baps.adapters.adapter import Adapter
from baps.adapters.visual_prompt import ImageStatistics, ToneVisualPrompt, image_statistics
from baps.adapters.visual_prompt.tone import clicked_levels
from baps.prompts import Prompt

SIDE = 64


def _halves() -> torch.Tensor:
    """A dark left and a bright right half."""
    images = torch.full((1, 3, SIDE, SIDE), 51.0)
    images[..., SIDE // 2 :] = 204.0
    return images


LEFT, RIGHT = Prompt(((10.0, 30.0),)), Prompt(((50.0, 30.0),))


def _set_apart() -> ToneVisualPrompt:
    """A parabola whose minimum is at the clicked grey level, in every colour: 4 (I - c)^2 in terms of the basis."""
    visual_prompt = ToneVisualPrompt(ImageStatistics())
    with torch.no_grad():
        # 4 (I - c)^2 = 4 (I - .5)^2 - 2 d * 2 (I - .5) + d^2, with d = 2 c - 1; then I is subtracted.
        constant, slope = visual_prompt.constant.view(3, 4), visual_prompt.slope.view(3, 3, 4)
        constant[:, :3] = torch.tensor([-0.5, -0.5, 1.0])
        slope[0, :, 1], slope[1, :, 0] = -2.0, 1.0
    return visual_prompt


@pytest.mark.parametrize("prompt", [LEFT, RIGHT])
def test_untrained_it_changes_nothing(prompt: Prompt) -> None:
    visual_prompt = ToneVisualPrompt(ImageStatistics())
    assert torch.equal(visual_prompt.transform_images(_halves(), image_statistics(_halves()), [prompt]), _halves())


def test_the_clicked_tissue_is_set_apart_whatever_its_grey_level() -> None:
    images = _halves()
    for prompt, clicked in ((LEFT, slice(0, 20)), (RIGHT, slice(40, 60))):
        changed = _set_apart().transform_images(images, image_statistics(images), [prompt])
        darkest = changed[..., clicked]
        assert float(darkest.max()) < 10
        assert float(changed.max()) > 250


def test_the_level_is_that_around_the_first_click_or_in_the_middle_of_the_box() -> None:
    images = _halves()

    def level(prompt: Prompt) -> int:
        return int(clicked_levels(images, [prompt])[0])

    assert level(LEFT) == level(Prompt(((10.0, 30.0), (50.0, 30.0)), ((60.0, 5.0),))) == round(51 / 255 * 63)
    assert level(RIGHT) == level(Prompt(box=(40.0, 10.0, 60.0, 50.0))) == round(204 / 255 * 63)
    noisy = images.clone()
    noisy[0, :, 30, 10] = 255.0
    assert int(clicked_levels(noisy, [LEFT])[0]) < level(RIGHT)  # One pixel is no tissue.
    assert clicked_levels(images, [Prompt(((-0.4, 63.4),))]).tolist() == [level(LEFT)]  # In the corner.


def test_clicks_on_tissue_of_one_grey_level_share_an_encoding() -> None:
    adapter = Adapter(_set_apart())
    pixels = _halves().permute(0, 2, 3, 1).to(torch.uint8).numpy()
    elsewhere = Prompt(((12.0, 50.0), (14.0, 8.0)), ((60.0, 5.0),))
    keys = [adapter.encoding_key(adapter.crop(pixels, [prompt])) for prompt in (LEFT, elsewhere, RIGHT)]
    assert keys[0] == keys[1] != keys[2]
    assert not adapter.prompt_independent
