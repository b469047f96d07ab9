from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from baps.adapters.visual_prompt import STATISTICS, BasisVisualPrompt, ImageStatistics, image_statistics
from baps.adapters.visual_prompt.basis import FUNCTIONS, basis_functions
from baps.prompts import Prompt

CLICKS = [Prompt(((10.0, 20.0),)), Prompt(((30.0, 3.0),))]


def _images(side: int = 48) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(0)).float()


def _code(constant: float = 0.0, linear: float = 0.0, square: float = 0.0, detail: float = 0.0) -> torch.Tensor:
    return torch.tensor([constant, linear, square, detail]).view(1, 1, FUNCTIONS, 1, 1).repeat(1, 3, 1, 1, 1)


def _set_random_weights(visual_prompt: BasisVisualPrompt) -> None:
    with torch.no_grad():
        visual_prompt.head.weight.add_(
            0.1 * torch.randn(visual_prompt.head.weight.shape, generator=torch.Generator().manual_seed(1))
        )


@pytest.mark.parametrize("grid", [1, 3])
@pytest.mark.parametrize("side", [32, 128])
def test_untrained_prompt_changes_nothing(grid: int, side: int) -> None:
    images = _images(side)
    visual_prompt = BasisVisualPrompt(ImageStatistics(), grid)
    assert torch.equal(visual_prompt.transform_images(images, image_statistics(images), CLICKS), images)


@pytest.mark.parametrize("grid", [1, 4])
def test_shapes(grid: int) -> None:
    images = _images()
    visual_prompt = BasisVisualPrompt(ImageStatistics(), grid)
    _set_random_weights(visual_prompt)
    code = visual_prompt.code(image_statistics(images), CLICKS, _images())
    assert code.shape == (2, 3, FUNCTIONS, grid, grid)
    assert visual_prompt.apply_code(images, code).shape == images.shape
    assert visual_prompt.sample_directions(code.shape, torch.Generator().manual_seed(0)).shape == code.shape


def test_with_one_cell_the_code_has_twelve_numbers() -> None:
    visual_prompt = BasisVisualPrompt(ImageStatistics())
    assert visual_prompt.code(torch.zeros(1, STATISTICS), CLICKS[:1], _images()).numel() == 12


def test_code_for_a_label_depends_on_the_image_only() -> None:
    images = _images()
    images[1] *= 0.3
    features = image_statistics(images)
    visual_prompt = BasisVisualPrompt(ImageStatistics())
    _set_random_weights(visual_prompt)
    code = visual_prompt.code(features, CLICKS, _images())
    assert torch.equal(code, visual_prompt.code(features, CLICKS[::-1], _images()))
    assert torch.equal(code, visual_prompt.code(features, [Prompt(box=(0.0, 0.0, 9.0, 9.0))] * 2, _images()))
    assert not torch.allclose(code[0], code[1])
    assert not visual_prompt.conditioned_on_click


def test_code_for_a_click_depends_on_the_image_and_the_click() -> None:
    images = _images()
    images[1] *= 0.3
    features = image_statistics(images)
    visual_prompt = BasisVisualPrompt(ImageStatistics(), condition="click")
    _set_random_weights(visual_prompt)
    code = visual_prompt.code(features, CLICKS, _images())
    assert visual_prompt.conditioned_on_click
    assert not torch.allclose(code, visual_prompt.code(features, CLICKS[::-1], _images()))
    assert not torch.allclose(code, visual_prompt.code(features.flip(0), CLICKS, _images()))
    assert not torch.equal(
        visual_prompt.transform_images(images, features, CLICKS),
        visual_prompt.transform_images(images, features, CLICKS[::-1]),
    )


def test_click_code_scales_with_the_image_and_survives_a_round_trip() -> None:
    features = torch.zeros(2, STATISTICS)
    visual_prompt, different = (BasisVisualPrompt(ImageStatistics(), seed=seed, condition="click") for seed in (1, 2))
    _set_random_weights(visual_prompt)
    code = visual_prompt.code(features, CLICKS, _images())
    assert not torch.allclose(code, visual_prompt.code(features, CLICKS, _images(96)))
    different.load_state_dict(visual_prompt.state_dict())
    assert torch.equal(code, different.code(features, CLICKS, _images()))


def test_other_weights_change_the_image() -> None:
    images = _images()
    visual_prompt = BasisVisualPrompt(ImageStatistics())
    with torch.no_grad():
        visual_prompt.head.bias.fill_(0.1)
    changed = visual_prompt.transform_images(images, image_statistics(images), CLICKS)
    assert float((changed - images).abs().mean()) >= 1
    assert torch.equal(changed, changed.round())
    assert float(changed.min()) >= 0
    assert float(changed.max()) <= 255


def test_the_constant_shifts_brightness() -> None:
    images = torch.tensor([0.0, 10, 100, 230]).view(1, 1, 2, 2).repeat(1, 3, 1, 1)
    changed = BasisVisualPrompt(ImageStatistics()).apply_code(images, _code(constant=0.2))
    assert changed[0, 0].flatten().tolist() == [51, 61, 151, 255]


def test_the_linear_term_changes_contrast_about_the_middle() -> None:
    images = torch.tensor([0.0, 51, 102, 255]).view(1, 1, 2, 2).repeat(1, 3, 1, 1)
    changed = BasisVisualPrompt(ImageStatistics()).apply_code(images, _code(linear=0.25))
    # I + 0.25 * 2 * (I - 0.5), of white: 51 (0.2) falls by 0.15, 102 (0.4) by 0.05.
    assert changed[0, 1].flatten().tolist() == [0, 13, 89, 255]


def test_the_square_term_lifts_both_ends() -> None:
    images = torch.tensor([0.0, 51, 204, 153]).view(1, 1, 2, 2).repeat(1, 3, 1, 1)
    changed = BasisVisualPrompt(ImageStatistics()).apply_code(images, _code(square=0.1))
    # 0.1 * 4 * (I - 0.5)^2 of white: 0.1, 0.036, 0.036, 0.004.
    assert changed[0, 2].flatten().tolist() == [26, 60, 213, 154]


def test_detail_term_sharpens_edges_only() -> None:
    images = torch.full((1, 3, 32, 32), 80.0)
    images[..., 16:] = 160
    changed = BasisVisualPrompt(ImageStatistics()).apply_code(images, _code(detail=0.2))
    assert torch.equal(changed[..., :12], images[..., :12])
    assert torch.equal(changed[..., 20:], images[..., 20:])
    assert float(changed[..., 15].max()) < 80
    assert float(changed[..., 16].min()) > 160


def test_channels_are_independent() -> None:
    images = _images()
    code = torch.zeros(2, 3, FUNCTIONS, 1, 1)
    code[:, 1, 0] = 0.3
    changed = BasisVisualPrompt(ImageStatistics()).apply_code(images, code)
    assert torch.equal(changed[:, 0], images[:, 0])
    assert torch.equal(changed[:, 2], images[:, 2])
    assert not torch.equal(changed[:, 1], images[:, 1])


def test_grid_cell_acts_at_its_position() -> None:
    images = torch.full((1, 3, 64, 64), 100.0)
    code = torch.zeros(1, 3, FUNCTIONS, 2, 2)
    code[:, :, 0, 0, 1] = 0.2  # First row, second column: the upper right.
    changed = BasisVisualPrompt(ImageStatistics(), grid=2).apply_code(images, code)
    assert float(changed[0, 0, 0, 63]) == 151
    assert float(changed[0, 0, 0, 0]) == 100
    assert float(changed[0, 0, 63, 63]) == 100


def test_functions_are_centred() -> None:
    grey = torch.full((1, 3, 32, 32), 0.5)
    functions = basis_functions(grey)
    assert [function.shape for function in functions] == [grey.shape] * FUNCTIONS
    torch.testing.assert_close(functions[0], torch.ones_like(grey))
    assert max(float(function.abs().max()) for function in functions[1:]) < 1e-6


@pytest.mark.parametrize("colour", [False, True])
def test_detail_is_the_difference_to_the_local_mean(colour: bool) -> None:
    """For grey images, the detail is computed once for all three channels."""
    x = _images() / 255
    x = x if colour else x[:, :1].expand_as(x)
    smooth = F.avg_pool2d(x, 7, 1, 3, count_include_pad=False)
    torch.testing.assert_close(basis_functions(x)[3], 4 * (x - smooth), atol=1e-5, rtol=0)


def test_directions_are_normal_and_reproducible() -> None:
    visual_prompt = BasisVisualPrompt(ImageStatistics())
    shape = torch.Size((500, 3, FUNCTIONS, 1, 1))
    first, same, different = (
        visual_prompt.sample_directions(shape, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, different)
    assert float(first.mean()) == pytest.approx(0, abs=0.05)
    assert float(first.std()) == pytest.approx(1, abs=0.05)
