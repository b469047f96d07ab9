from __future__ import annotations

import pytest
import torch

from baps.adapters.output_head import FEATURES, GRID, OutputHead, head_features
from baps.prompts import Prompt

PROMPTS = [Prompt(((3.0, 4.0),)), Prompt(box=(1.0, 2.0, 30.0, 28.0)), Prompt(((8.0, 9.0),), ((20.0, 3.0),))]


def _images(side: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, side, side), generator=torch.Generator().manual_seed(0)).float()


def _answers(side: int) -> torch.Tensor:
    return torch.rand((3, side, side), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("side", [32, 64, 100, 256])
def test_untrained_head_adds_nothing(side: int) -> None:
    head = OutputHead().eval()
    assert not head(head_features(_images(side), _answers(side), PROMPTS)).any()
    refined = head.refine_masks(_images(side), _answers(side), PROMPTS)
    torch.testing.assert_close(refined, _answers(side).clamp(0.002, 0.998), atol=1e-5, rtol=0)


def test_untrained_head_has_gradients() -> None:
    """Every weight has a gradient once the last layer is not zero."""
    head = OutputHead()
    torch.nn.init.ones_(head.last.weight)
    head(head_features(_images(64), _answers(64), PROMPTS)).square().sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize("side", [32, 64, 100, 256, 1024])
def test_a_correction_is_added_to_the_log_odds_at_every_size(side: int) -> None:
    head = OutputHead().eval()
    assert head.last.bias is not None
    with torch.no_grad():
        head.last.bias.fill_(0.5)
    correction = float(head(torch.zeros(1, FEATURES, GRID, GRID)).detach().mean())
    assert correction == pytest.approx(1.5)
    refined = head.refine_masks(_images(side), _answers(side), PROMPTS)
    expected = (torch.logit(_answers(side).clamp(0.002, 0.998)) + correction).sigmoid()
    torch.testing.assert_close(refined, expected)


@pytest.mark.parametrize("side", [64, 100, 1024])
def test_rows_of_a_batch_do_not_mix(lively_head: OutputHead, side: int) -> None:
    images, answers = _images(side), _answers(side)
    batch = lively_head.refine_masks(images, answers, PROMPTS)
    assert not torch.allclose(batch, answers, atol=0.1)
    for row in range(3):
        first = slice(row, row + 1)
        alone = lively_head.refine_masks(images[first], answers[first], PROMPTS[first])
        torch.testing.assert_close(alone[0], batch[row], atol=1e-4, rtol=1e-4)


def test_output_is_finite_for_extreme_features(lively_head: OutputHead) -> None:
    features = torch.cat([torch.full((1, FEATURES, GRID, GRID), value) for value in (1e6, -1e6)])
    assert bool(torch.isfinite(lively_head(features)).all())


def test_weights_depend_on_the_seed() -> None:
    before = torch.get_rng_state()
    first, same, different = (OutputHead(seed).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["fine.0.weight"], different["fine.0.weight"])
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_does_not_change_the_head(lively_head: OutputHead) -> None:
    before = {key: value.clone() for key, value in lively_head.state_dict().items()}
    lively_head.refine_masks(_images(64), _answers(64), PROMPTS)
    assert all(torch.equal(value, before[key]) for key, value in lively_head.state_dict().items())


def test_head_is_small() -> None:
    """The head is stored in the file of the adapter and runs at every click."""
    assert sum(parameter.numel() for parameter in OutputHead().parameters()) < 60_000
