from __future__ import annotations

import pytest
import torch

from baps.adapters.visual_prompt import ConcatVisualPrompt, Encoder
from baps.adapters.visual_prompt.concat import choose_channels
from baps.errors import InputError
from baps.prompts import Prompt

IMAGES = torch.zeros(2, 3, 224, 224)
CLICKS = [Prompt(((10.0, 20.0),)), Prompt(((200.0, 3.0), (50.0, 60.0)), ((0.0, 0.0),))]


class _Encoder(Encoder):
    """Encoder of any length that returns the features of the test."""

    name = "by hand"

    def __init__(self, length: int = 512) -> None:
        self.length = length

    def to_dict(self) -> dict[str, str]:
        raise NotImplementedError

    def features(self, images: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


def _new_prompt(features: int = 512, seed: int = 0, condition: str = "click") -> ConcatVisualPrompt:
    return ConcatVisualPrompt(_Encoder(features), seed=seed, condition=condition)


def _every_grey_level(side: int) -> torch.Tensor:
    """Build images (2, 3, side, side) with each of the 256 levels in each channel."""
    assert side * side >= 256
    levels = torch.arange(side * side).remainder(256).view(side, side)
    return torch.stack(
        [torch.stack([levels, levels.flip(0), levels.T]), torch.stack([levels.T, levels, levels])]
    ).float()


def _features(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((2, length), generator=torch.Generator().manual_seed(seed))


def _set_random_weights(visual_prompt: ConcatVisualPrompt, size: float = 0.2) -> None:
    with torch.no_grad():
        visual_prompt.last.weight.add_(
            size * torch.randn(visual_prompt.last.weight.shape, generator=torch.Generator().manual_seed(1))
        )


@pytest.mark.parametrize("condition", ["label", "click"])
@pytest.mark.parametrize(("features", "parameters"), [(512, 304_706), (768, 453_267)])
def test_number_of_parameters_is_as_published(features: int, parameters: int, condition: str) -> None:
    visual_prompt = _new_prompt(features, condition=condition)
    assert sum(parameter.numel() for parameter in visual_prompt.parameters()) == parameters
    assert visual_prompt.code(_features(features), CLICKS, IMAGES).shape == (2, 3, 224, 224)


@pytest.mark.parametrize(("features", "channels"), [(224, 21), (512, 21), (768, 32), (2048, 58)])
def test_last_channels_hold_the_click(features: int, channels: int) -> None:
    assert choose_channels(features) == channels
    assert 49 * channels - features > 500


@pytest.mark.parametrize("side", [224, 128, 64, 256])
def test_untrained_prompt_changes_nothing(side: int) -> None:
    images = _every_grey_level(side)
    visual_prompt = _new_prompt(seed=3)
    assert torch.equal(visual_prompt.transform_images(images, _features(512), CLICKS), images)


def test_gradients_reach_the_body_of_an_untrained_prompt() -> None:
    """If all weights were zero, as in the reference code, no gradient would reach the body."""
    visual_prompt = _new_prompt()
    _set_random_weights(visual_prompt)
    visual_prompt.code(_features(512), CLICKS, IMAGES).square().sum().backward()
    for name, parameter in visual_prompt.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


def test_the_code_depends_on_the_click_and_on_the_features() -> None:
    visual_prompt = _new_prompt()
    _set_random_weights(visual_prompt)
    first_code = visual_prompt.code(_features(512), CLICKS, IMAGES)
    assert not torch.allclose(first_code, visual_prompt.code(_features(512), CLICKS[::-1], IMAGES))
    assert not torch.allclose(first_code, visual_prompt.code(_features(512, seed=9), CLICKS, IMAGES))
    assert visual_prompt.conditioned_on_click


def test_code_for_a_label_depends_on_the_features_only() -> None:
    visual_prompt = _new_prompt(condition="label")
    _set_random_weights(visual_prompt)
    first_code = visual_prompt.code(_features(512), CLICKS, IMAGES)
    assert torch.equal(first_code, visual_prompt.code(_features(512), CLICKS[::-1], IMAGES))
    assert not torch.allclose(first_code, visual_prompt.code(_features(512, seed=9), CLICKS, IMAGES))
    assert not visual_prompt.conditioned_on_click


def test_rows_of_a_batch_do_not_mix() -> None:
    visual_prompt = _new_prompt()
    _set_random_weights(visual_prompt)
    features = _features(512)
    batch = visual_prompt.code(features, CLICKS, IMAGES)
    for row in range(2):
        alone = visual_prompt.code(features[row : row + 1], CLICKS[row : row + 1], IMAGES[row : row + 1])
        torch.testing.assert_close(alone[0], batch[row], atol=1e-4, rtol=1e-4)


def test_state_contains_the_click_code() -> None:
    """The reference code loses its Fourier matrix."""
    visual_prompt, different = _new_prompt(seed=1), _new_prompt(seed=2)
    _set_random_weights(visual_prompt)
    assert "fourier" in visual_prompt.state_dict()
    assert not torch.equal(visual_prompt.fourier, different.fourier)
    different.load_state_dict(visual_prompt.state_dict())
    assert torch.equal(
        visual_prompt.code(_features(512), CLICKS, IMAGES), different.code(_features(512), CLICKS, IMAGES)
    )


def test_the_fourier_matrix_is_not_trained() -> None:
    assert "fourier" not in dict(_new_prompt().named_parameters())
    assert _new_prompt().fourier.shape == (2, 256)


def test_weights_depend_on_the_seed() -> None:
    before = torch.get_rng_state()
    first, same, different = (_new_prompt(seed=seed).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["fourier"], different["fourier"])
    assert not torch.equal(first["click.0.weight"], different["click.0.weight"])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("side", [128, 224])
def test_other_weights_change_the_image(side: int) -> None:
    images = _every_grey_level(side)
    visual_prompt = _new_prompt()
    _set_random_weights(visual_prompt)
    changed = visual_prompt.transform_images(images, _features(512), CLICKS)
    assert float((changed - images).abs().mean()) >= 1
    assert torch.equal(changed, changed.round())
    assert float(changed.min()) >= 0
    assert float(changed.max()) <= 255


def test_the_code_is_added_to_the_normalised_image() -> None:
    images = torch.full((1, 3, 224, 224), 100.0)
    code = torch.tensor([0.5, -0.25, 0.1]).view(1, 3, 1, 1).expand(1, 3, 224, 224)
    changed = _new_prompt().apply_code(images, code)
    # 100 + 0.5 * 58.395; 100 - 0.25 * 57.12; 100 + 0.1 * 57.375, rounded.
    assert [changed[0, channel].unique().tolist() for channel in range(3)] == [[129.0], [86.0], [106.0]]
    white = _new_prompt().apply_code(images, code * 100)
    assert [white[0, channel].unique().tolist() for channel in range(3)] == [[255.0], [0.0], [255.0]]


def test_directions_are_smooth_and_reproducible() -> None:
    visual_prompt = _new_prompt()
    shape = torch.Size((3, 3, 224, 224))
    first, same, different = (
        visual_prompt.sample_directions(shape, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first.shape == shape
    assert torch.equal(first, same)
    assert not torch.equal(first, different)
    assert not torch.equal(first[0], first[1])
    assert 0.3 < float(first.std()) < 1.5
    assert float((first[..., 1:] - first[..., :-1]).abs().max()) < 0.1


@pytest.mark.parametrize("channels", [1, 10])
def test_encoder_with_too_many_features_is_refused(channels: int) -> None:
    with pytest.raises(InputError, match=f"{channels} channels leave no room"):
        ConcatVisualPrompt(_Encoder(), channels)
