from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from baps.adapters.adapter import Adapter
from baps.prompts import Prompt
from benchmarks.adaptation.arms import Arena
from benchmarks.adaptation.zip_prompt import ClippedSpsa, LowRankVisualPrompt, zip_like


def test_the_prompt_starts_as_the_identity_and_has_a_low_rank() -> None:
    prompt = LowRankVisualPrompt(0)
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    adapter = Adapter(prompt)
    np.testing.assert_array_equal(adapter.transform_images(adapter.crop(image, [Prompt(((3.0, 3.0),))])), image)
    assert sum(value.numel() for value in prompt.parameters()) == 449
    with torch.no_grad():
        prompt.left.normal_()
        prompt.shared.normal_()
    code = prompt.code(torch.zeros(2, 1), [], 32)
    assert code.shape == (2, 3, 4, 8, 8)
    fields = code[0].reshape(12, 64)
    assert torch.linalg.matrix_rank(fields) == 6  # With the shared field.
    assert torch.linalg.matrix_rank(fields - prompt.shared) == 5


@pytest.mark.parametrize(("size", "expected"), [(0.5, 0.5), (100.0, 1.0)])
def test_estimates_are_clipped_to_the_root_of_the_number_of_weights(size: float, expected: float) -> None:
    step = -ClippedSpsa().update(torch.zeros(16), torch.full((16,), size))
    torch.testing.assert_close(step, torch.full((16,), expected * 0.01 / 2**0.4))


def test_steps_become_smaller() -> None:
    optimiser = ClippedSpsa()
    steps = [-float(optimiser.update(torch.zeros(1), torch.ones(1))) for _ in range(3)]
    np.testing.assert_allclose(steps, [0.01 / (i + 1) ** 0.4 for i in (1, 2, 3)], rtol=1e-6)


def test_a_run_keeps_the_budget_lowers_the_loss_and_is_repeatable(
    new_black_box: Callable[..., Any], dim_slices: Callable[..., Any]
) -> None:
    patients = dim_slices(3)
    test = [patients.pop("patient 2")]
    weights = []
    for seed in (0, 0, 1):
        arena = Arena(new_black_box(), new_black_box(), patients, test, seed, 1000)
        _, adapter = zip_like(arena)
        assert adapter is not None
        assert 900 < arena.black_box.images_queried <= 1000
        weights.append(parameters_to_vector(adapter.visual_prompt.parameters()))
        with torch.no_grad():
            brightness = adapter.visual_prompt.code(torch.zeros(1, 1), [], 32)[0, :, 0].mean()
        assert float(brightness) > 0  # A brighter image helps.
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
