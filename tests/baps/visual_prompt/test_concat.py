from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from baps.blackbox import Prompt
from baps.errors import InputError
from baps.visual_prompt import ConcatVisualPrompt

CLICKS = [Prompt(((10.0, 20.0),)), Prompt(((200.0, 3.0), (50.0, 60.0)), ((0.0, 0.0),))]


def _every_grey_level(side: int) -> torch.Tensor:
    """(2, 3, side, side); each of the 256 levels in each channel."""
    assert side * side >= 256
    levels = torch.arange(side * side).remainder(256).view(side, side)
    return torch.stack(
        [torch.stack([levels, levels.flip(0), levels.T]), torch.stack([levels.T, levels, levels])]
    ).float()


def _features(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((2, length), generator=torch.Generator().manual_seed(seed))


def _wake(made: ConcatVisualPrompt, size: float = 0.2) -> None:
    with torch.no_grad():
        made.last.weight.add_(size * torch.randn(made.last.weight.shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(("features", "channels", "parameters"), [(512, 21, 304_706), (768, 32, 453_267)])
def test_size_as_published(features: int, channels: int, parameters: int) -> None:
    made = ConcatVisualPrompt(features, channels)
    assert sum(parameter.numel() for parameter in made.parameters()) == parameters
    assert made.code(_features(features), CLICKS, 224).shape == (2, 3, 224, 224)


@pytest.mark.parametrize("side", [224, 128, 64, 256])
def test_untrained_it_changes_nothing(side: int) -> None:
    images = _every_grey_level(side)
    made = ConcatVisualPrompt(512, seed=3)
    assert torch.equal(made.change(images, _features(512), CLICKS), images)


def test_untrained_the_body_is_alive() -> None:
    """All zero, as in the reference code, no gradient would reach the body once the last layer moves."""
    made = ConcatVisualPrompt(512)
    _wake(made)
    made.code(_features(512), CLICKS, 224).square().sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


def test_click_code_by_hand() -> None:
    made = ConcatVisualPrompt(512, seed=5)
    code = made.click_code([CLICKS[0]], 224)
    where = (np.array([10.0, 20.0]) + 0.5) / 224 * 2 - 1
    angle = where @ made.fourier.numpy().astype(float) * 2 * math.pi
    np.testing.assert_allclose(code.numpy(), [np.concatenate([np.sin(angle), np.cos(angle)])], atol=1e-4)


def test_click_code_follows_the_side_of_the_canvas() -> None:
    made = ConcatVisualPrompt(512)
    (scaled,) = [prompt.scaled(0.5, 0.5) for prompt in CLICKS[:1]]
    torch.testing.assert_close(made.click_code([scaled], 112), made.click_code(CLICKS[:1], 224), atol=1e-4, rtol=0)


def test_several_clicks_are_averaged() -> None:
    made = ConcatVisualPrompt(512)
    together = made.click_code([CLICKS[1]], 224)
    apart = made.click_code([Prompt((point,)) for point in CLICKS[1].positive], 224)
    torch.testing.assert_close(together[0], apart.mean(0))


def test_a_box_counts_as_two_corners() -> None:
    made = ConcatVisualPrompt(512)
    box = made.click_code([Prompt(box=(3.0, 4.0, 50.0, 60.0))], 224)
    torch.testing.assert_close(box, made.click_code([Prompt(((3.0, 4.0), (50.0, 60.0)))], 224))


def test_the_code_depends_on_the_click_and_on_the_features() -> None:
    made = ConcatVisualPrompt(512)
    _wake(made)
    here = made.code(_features(512), CLICKS, 224)
    assert not torch.allclose(here, made.code(_features(512), CLICKS[::-1], 224))
    assert not torch.allclose(here, made.code(_features(512, seed=9), CLICKS, 224))
    assert ConcatVisualPrompt.conditioned_on_click


def test_rows_of_a_batch_do_not_mix() -> None:
    made = ConcatVisualPrompt(512)
    _wake(made)
    features = _features(512)
    batch = made.code(features, CLICKS, 224)
    for row in range(2):
        alone = made.code(features[row : row + 1], CLICKS[row : row + 1], 224)
        torch.testing.assert_close(alone[0], batch[row], atol=1e-4, rtol=1e-4)


def test_round_trip_of_the_state_keeps_the_click_code() -> None:
    """The reference code loses its Fourier matrix."""
    made, other = ConcatVisualPrompt(512, seed=1), ConcatVisualPrompt(512, seed=2)
    _wake(made)
    assert "fourier" in made.state_dict()
    assert not torch.equal(made.click_code(CLICKS, 224), other.click_code(CLICKS, 224))
    other.load_state_dict(made.state_dict())
    assert torch.equal(made.click_code(CLICKS, 224), other.click_code(CLICKS, 224))
    assert torch.equal(made.code(_features(512), CLICKS, 224), other.code(_features(512), CLICKS, 224))


def test_the_fourier_matrix_is_not_trained() -> None:
    assert "fourier" not in dict(ConcatVisualPrompt(512).named_parameters())
    assert ConcatVisualPrompt(512).fourier.shape == (2, 256)


def test_seeds() -> None:
    before = torch.get_rng_state()
    one, same, other = (ConcatVisualPrompt(512, seed=seed).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["fourier"], other["fourier"])
    assert not torch.equal(one["click.0.weight"], other["click.0.weight"])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("side", [128, 224])
def test_other_weights_move_the_image(side: int) -> None:
    images = _every_grey_level(side)
    made = ConcatVisualPrompt(512)
    _wake(made)
    changed = made.change(images, _features(512), CLICKS)
    assert float((changed - images).abs().mean()) >= 1
    assert torch.equal(changed, changed.round())
    assert float(changed.min()) >= 0
    assert float(changed.max()) <= 255


def test_the_code_is_added_to_the_normalised_image() -> None:
    images = torch.full((1, 3, 224, 224), 100.0)
    code = torch.tensor([0.5, -0.25, 0.1]).view(1, 3, 1, 1).expand(1, 3, 224, 224)
    changed = ConcatVisualPrompt(512).apply_code(images, code)
    # 100 + 0.5 * 58.395; 100 - 0.25 * 57.12; 100 + 0.1 * 57.375, rounded.
    assert [changed[0, channel].unique().tolist() for channel in range(3)] == [[129.0], [86.0], [106.0]]
    white = ConcatVisualPrompt(512).apply_code(images, code * 100)
    assert [white[0, channel].unique().tolist() for channel in range(3)] == [[255.0], [0.0], [255.0]]


def test_directions_are_smooth_and_fixed_by_the_seed() -> None:
    made = ConcatVisualPrompt(512)
    shape = torch.Size((3, 3, 224, 224))
    one, same, other = (made.directions(shape, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one.shape == shape
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])
    assert 0.3 < float(one.std()) < 1.5
    assert float((one[..., 1:] - one[..., :-1]).abs().max()) < 0.1


@pytest.mark.parametrize("channels", [1, 10])
def test_no_room_for_the_click_is_refused(channels: int) -> None:
    with pytest.raises(InputError, match=f"{channels} channels leave no room"):
        ConcatVisualPrompt(512, channels)
