from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from baps.adapters.adapter import Adapter
from baps.adapters.visual_prompt import build_visual_prompt, load_encoder, to_pixels
from baps.blackbox import BlackBox
from baps.evaluation.scoring import score_slices
from baps.prompts import Prompt
from baps.training.batches import Batches
from baps.training.settings import AdaptationSettings
from baps.training.training import train_visual_prompt
from benchmarks.adaptation.arms import CORE, EVERYWHERE, WINDOWS, _window
from benchmarks.adaptation.constant_prompt import constant_prompt
from benchmarks.adaptation.steppers import CmaEsStepper, WhiteBoxStepper


def test_every_arm_of_the_other_domains_is_one_of_the_core() -> None:
    assert EVERYWHERE.items() <= CORE.items()
    assert all(arm.__doc__ or name == "zero_shot" for name, arm in CORE.items())


@pytest.mark.parametrize("limits", WINDOWS)
def test_a_window_in_our_basis_is_a_window(limits: tuple[float, float]) -> None:
    low, high = limits
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    expected = (255 * np.clip((image / 255 - low) / (high - low), 0, 1)).round()
    adapter = _window(low, high)
    found = adapter.transform_images(adapter.crop(image, [Prompt(((3.0, 3.0),))]))
    assert np.abs(found - expected).max() <= 1


def test_cma_es_learns(new_black_box: Callable[..., Any], dim_slices: Callable[..., Any]) -> None:
    slices = [piece for pieces in dim_slices(3).values() for piece in pieces]
    settings = AdaptationSettings(zoom="none", head="none", curve_points=1, curve_slices=1)
    prompt, batches = constant_prompt(), Batches(slices, load_encoder())
    train_visual_prompt(new_black_box(), prompt, batches, settings, 2000, stepper=CmaEsStepper(0))
    made = Adapter(prompt)
    before, after = (score_slices(new_black_box(), arm, slices, "click", 99, 1).mean() for arm in (None, made))
    assert before < 0.1
    assert after > 0.8


def test_the_white_box_answers_as_the_bundled_black_box(bundled: BlackBox) -> None:
    """The bound is one only if it is of the same model."""
    images = torch.rand(4, 3, 192, 192, generator=torch.Generator().manual_seed(0)).mul(255).round()
    here, there, elsewhere = (90.0, 80.0), (20.0, 150.0), (140.0, 40.0)
    prompts = [Prompt((here,)), Prompt((here, there), (elsewhere,)), Prompt((there,)), Prompt((there,), (here,))]
    with torch.no_grad():
        found = WhiteBoxStepper(AdaptationSettings())._segment(images, prompts).numpy()
    np.testing.assert_allclose(found, bundled.segment(to_pixels(images), prompts), atol=1e-4)


def test_exact_gradients_lower_the_loss(bundled: BlackBox, dim_slices: Callable[..., Any]) -> None:
    slices = [piece for pieces in dim_slices(1, per_patient=2, side=192).values() for piece in pieces]
    settings = AdaptationSettings(zoom="none", head="none", curve_points=1, curve_slices=2, max_images=100)
    visual_prompt = build_visual_prompt("basis")
    stepper = WhiteBoxStepper(settings)
    batches = Batches(slices, load_encoder())
    curve = train_visual_prompt(bundled, visual_prompt, batches, settings, 100, stepper=stepper)
    assert len(curve) == 2
    assert bool(visual_prompt.state_dict()["head.bias"].any())
