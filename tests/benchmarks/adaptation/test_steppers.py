from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from baps.adapters.visual_prompt import build_visual_prompt, to_pixels
from baps.blackbox import BlackBox
from baps.evaluation.scoring import score_slices
from baps.prompts import Prompt
from baps.training.settings import AdaptationSettings
from baps.training.training import train
from benchmarks.adaptation.arms import CORE, EVERYWHERE, WINDOWS, _constant, _window
from benchmarks.adaptation.steppers import CmaEsStepper, WhiteBoxStepper


def test_arms_of_other_domains_are_core_arms() -> None:
    assert EVERYWHERE.items() <= CORE.items()
    assert all(arm.__doc__ or name == "zero_shot" for name, arm in CORE.items())


@pytest.mark.parametrize("limits", WINDOWS)
def test_window_adapter_equals_windowing(limits: tuple[float, float]) -> None:
    low, high = limits
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    expected = (255 * np.clip((image / 255 - low) / (high - low), 0, 1)).round()
    adapter = _window(low, high)
    transformed = adapter.transform_images(adapter.crop(image, [Prompt(((3.0, 3.0),))]))
    assert np.abs(transformed - expected).max() <= 1


def test_cma_es_improves_dice(new_black_box: Callable[..., Any], dim_slices: Callable[..., Any]) -> None:
    slices = [piece for pieces in dim_slices(3).values() for piece in pieces]
    settings = AdaptationSettings(zoom="none", head="none", curve_points=1, curve_slices=1)
    adapter, _ = train(new_black_box(), slices, settings, 2000, visual_prompt=_constant(), stepper=CmaEsStepper(0))
    before, after = (score_slices(new_black_box(), arm, slices, "click", 99, 1).mean() for arm in (None, adapter))
    assert before < 0.1
    assert after > 0.8


def test_white_box_equals_the_bundled_black_box(bundled: BlackBox) -> None:
    """The white box is an upper bound only if it is the same model."""
    images = torch.rand(4, 3, 192, 192, generator=torch.Generator().manual_seed(0)).mul(255).round()
    first, second, third = (90.0, 80.0), (20.0, 150.0), (140.0, 40.0)
    prompts = [Prompt((first,)), Prompt((first, second), (third,)), Prompt((second,)), Prompt((second,), (first,))]
    with torch.no_grad():
        probabilities = WhiteBoxStepper(AdaptationSettings())._segment(images, prompts).numpy()
    np.testing.assert_allclose(probabilities, bundled.segment(to_pixels(images), prompts), atol=1e-4)


def test_exact_gradients_lower_the_loss(bundled: BlackBox, dim_slices: Callable[..., Any]) -> None:
    slices = [piece for pieces in dim_slices(1, per_patient=2, side=192).values() for piece in pieces]
    settings = AdaptationSettings(zoom="none", head="none", curve_points=1, curve_slices=2, max_images=100)
    visual_prompt = build_visual_prompt("basis")
    adapter, curve = train(
        bundled, slices, settings, 100, visual_prompt=visual_prompt, stepper=WhiteBoxStepper(settings)
    )
    assert adapter.visual_prompt is visual_prompt
    assert len(curve) == 2
    assert bool(visual_prompt.state_dict()["head.bias"].any())
