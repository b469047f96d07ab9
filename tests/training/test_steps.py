from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from baps.adapters.optimisers.spsa_gc import SpsaGc
from baps.adapters.visual_prompt import (
    KINDS,
    BasisVisualPrompt,
    VisualPrompt,
    build_visual_prompt,
    load_encoder,
    to_pixels,
    to_tensor,
)
from baps.evaluation.slices import LabelledSlice
from baps.prompts import Prompt
from baps.training.batches import Batch, Batches
from baps.training.losses import batch_loss, image_losses
from baps.training.settings import AdaptationSettings
from baps.training.steps import PromptSpaceStepper, SpsaGcStepper, query_black_box
from baps.training.training import build_stepper

Slices = Callable[..., dict[str, list[LabelledSlice]]]
SETTINGS = AdaptationSettings()


@pytest.fixture
def batch(dim_slices: Slices) -> Batch:
    pieces = [piece for pieces in dim_slices(3, per_patient=1).values() for piece in pieces]
    return Batches(pieces, load_encoder("statistics", "")).draw([0, 1, 2], "click", 0, np.random.default_rng(0))


def _trained_prompt(kind: str, condition: str = "click", seed: int = 0) -> VisualPrompt:
    visual_prompt = build_visual_prompt(kind, seed, condition)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in visual_prompt.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return visual_prompt


def _query_directly(function: Callable[[], Sequence[float]]) -> list[float]:
    """Query without a log."""
    return list(function())


def _never(function: Callable[[], Sequence[float]]) -> list[float]:
    raise AssertionError(function)


def test_settings_select_the_stepper() -> None:
    assert isinstance(build_stepper(AdaptationSettings(batch_size=5)), PromptSpaceStepper)
    assert build_stepper(AdaptationSettings(batch_size=5)).batch_size == 5
    assert isinstance(build_stepper(AdaptationSettings(optimiser="spsa_gc")), SpsaGcStepper)
    assert (SpsaGcStepper().batch_size, SpsaGcStepper().queries_per_slice) == (
        4,
        10,
    )  # As published: 2 * 5 * 4 images per step.


def test_query_keeps_positions_and_grey_levels(new_black_box: Callable[..., Any]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 9, 3)).astype(np.uint8)
    black_box = new_black_box()
    answer = query_black_box(black_box, to_tensor(pixels), [Prompt(((0.0, 0.0),))] * 2)
    np.testing.assert_array_equal(black_box.queries[0][0], pixels)
    assert answer.shape == (2, 8, 9)


@pytest.mark.parametrize("condition", ["label", "click"])
@pytest.mark.parametrize("kind", KINDS)
def test_codes_of_several_weights_equal_single_ones(batch: Batch, kind: str, condition: str) -> None:
    adapter = _trained_prompt(kind, condition)
    stepper = SpsaGcStepper()
    stepper.start(adapter, 1)
    thetas = stepper.theta + 0.1 * torch.randn((4, *stepper.theta.shape), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = stepper._codes(thetas, batch)
    assert torch.equal(parameters_to_vector(adapter.parameters()), stepper.theta)  # The weights were only evaluated.
    alone = []
    for theta in thetas:
        vector_to_parameters(theta.clone(), adapter.parameters())
        with torch.no_grad():
            alone.append(adapter.code(batch.features, batch.prompts, batch.images))
    assert together.shape == (4 * 3, *alone[0].shape[1:])
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("optimiser", "images"), [("prompt_space", 6), ("spsa_gc", 30)])
def test_step_queries_once_and_updates_the_weights(
    new_black_box: Callable[..., Any], batch: Batch, optimiser: str, images: int, kind: str
) -> None:
    stepper = build_stepper(AdaptationSettings(optimiser=optimiser))
    assert stepper.queries_per_slice * 3 == images
    adapter, black_box = _trained_prompt(kind), new_black_box(batch_size=100)
    before = parameters_to_vector(adapter.parameters()).detach().clone()
    reports: list[int] = []

    def get_or_query(function: Callable[[], Sequence[float]]) -> list[float]:
        result = list(function())
        reports.append(len(result))
        return result

    stepper.start(adapter, 4)
    stepper.step(black_box, batch, torch.Generator().manual_seed(0), get_or_query)
    assert reports == [6 if optimiser == "prompt_space" else 10]
    ((queried, prompts),) = black_box.queries
    assert len(queried) == images
    assert prompts == batch.prompts * (images // 3)
    after = parameters_to_vector(adapter.parameters()).detach()
    assert not torch.equal(before, after)
    assert bool(torch.isfinite(after).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimiser", ["prompt_space", "spsa_gc"])
def test_step_depends_on_the_losses_and_the_seed_only(
    new_black_box: Callable[..., Any], batch: Batch, optimiser: str, kind: str
) -> None:
    """With the losses of the log nothing is queried, and the weights are identical."""
    losses_log: list[list[float]] = []
    states = []
    for again in (False, True, True):
        adapter, stepper = _trained_prompt(kind), build_stepper(AdaptationSettings(optimiser=optimiser))
        stepper.start(adapter, 3)
        black_box = new_black_box()
        for step in range(3):

            def get_or_query(
                function: Callable[[], Sequence[float]], step: int = step, again: bool = again
            ) -> list[float]:
                if not again:
                    losses_log.append(list(function()))
                return losses_log[step]

            stepper.step(black_box, batch, torch.Generator().manual_seed(step), get_or_query)
        assert (black_box.images_queried == 0) == again
        states.append(adapter.state_dict())
    for other in states[1:]:
        assert all(torch.equal(states[0][key], other[key]) for key in other)


def test_prompt_space_step_by_hand(new_black_box: Callable[..., Any], batch: Batch) -> None:
    settings = AdaptationSettings(perturbation_radius=0.2, learning_rate=0.05)
    visual_prompt, stepper = build_visual_prompt("basis"), PromptSpaceStepper(settings)
    stepper.start(visual_prompt, 1)
    black_box = new_black_box(batch_size=100)
    stepper.step(black_box, batch, torch.Generator().manual_seed(5), _query_directly)
    by_hand = build_visual_prompt("basis")
    code = by_hand.code(batch.features, batch.prompts, batch.images)
    directions = by_hand.sample_directions(code.shape, torch.Generator().manual_seed(5))
    trials = [by_hand.apply_code(batch.images, code.detach() + sign * 0.2 * directions) for sign in (1, -1)]
    np.testing.assert_array_equal(black_box.queries[0][0], np.concatenate([to_pixels(images) for images in trials]))
    plus, minus = (
        image_losses(query_black_box(new_black_box(), weights, batch.prompts), batch.target) for weights in trials
    )
    estimate = ((plus - minus) / (2 * 0.2)).view(3, 1, 1, 1, 1) * directions
    (estimate * code).sum().div(3).backward()
    assert isinstance(by_hand, BasisVisualPrompt)
    assert isinstance(visual_prompt, BasisVisualPrompt)
    assert by_hand.head.bias.grad is not None
    # The first step of Adam is the step size times the sign of the gradient.
    torch.testing.assert_close(
        visual_prompt.head.bias.detach(), -0.05 * by_hand.head.bias.grad.sign(), atol=1e-4, rtol=0
    )
    assert float(visual_prompt.head.weight.detach().abs().max()) == pytest.approx(0.05 / 30, rel=1e-2)


def test_spsa_step_by_hand(new_black_box: Callable[..., Any], batch: Batch) -> None:
    adapter, stepper = _trained_prompt("concat"), SpsaGcStepper(visible=False)
    stepper.start(adapter, 1)
    theta = stepper.theta.clone()
    stepper.step(new_black_box(), batch, torch.Generator().manual_seed(5), _query_directly)

    def losses(thetas: torch.Tensor) -> torch.Tensor:
        other, result = _trained_prompt("concat"), []
        for weights in thetas:
            vector_to_parameters(weights, other.parameters())
            changed = other.transform_images(batch.images, batch.features, batch.prompts)
            result.append(batch_loss(query_black_box(new_black_box(), changed, batch.prompts), batch.target))
        return torch.stack(result)

    expected = SpsaGc().step(theta, losses, torch.Generator().manual_seed(5))
    result = parameters_to_vector(adapter.parameters()).detach()
    assert not torch.allclose(result, theta)
    # A code that differs in the last digit sometimes rounds to another grey level.
    assert float(torch.corrcoef(torch.stack([result - theta, expected - theta]))[0, 1]) > 0.99


@pytest.mark.parametrize("visible", [True, False])
def test_spsa_keeps_perturbations_visible_by_default(
    new_black_box: Callable[..., Any], batch: Batch, visible: bool
) -> None:
    """As published, c = 0.01 changes an image by less than a grey level, and rounding hides the change."""
    stepper, black_box = SpsaGcStepper(visible), new_black_box(batch_size=100)
    stepper.start(build_visual_prompt("concat", 3), 1)
    stepper.step(black_box, batch, torch.Generator().manual_seed(0), _query_directly)
    plus, minus = black_box.queries[0][0].astype(float).reshape(2, 5, -1)
    assert (np.abs(plus - minus).mean(1).min() > 1) == visible


def test_prompt_space_does_not_change_with_constant_masks(batch: Batch) -> None:
    adapter = _trained_prompt("basis")
    before = parameters_to_vector(adapter.parameters()).detach().clone()
    stepper = PromptSpaceStepper(SETTINGS)
    stepper.start(adapter, 2)
    for _ in range(2):
        stepper.step(None, batch, torch.Generator().manual_seed(0), lambda _: [0.5] * 6)  # type: ignore[arg-type]
    assert torch.equal(parameters_to_vector(adapter.parameters()).detach(), before)


@pytest.mark.parametrize("optimiser", ["prompt_space", "spsa_gc"])
@pytest.mark.parametrize(("zoom", "width"), [(1.0, 24), (0.5, 32)])
def test_model_with_its_own_preprocessing_is_trained_without_padding(
    new_black_box: Callable[..., Any], dim_slices: Slices, optimiser: str, zoom: float, width: int
) -> None:
    """The organs lie in the left half, so that a crop around one shows no padding."""
    pieces = [replace(pieces[0], size=(32, 24)) for pieces in dim_slices(2, per_patient=1).values()]
    batch = Batches(pieces, load_encoder("statistics", ""), zoom).draw([0, 1], "click", 0, np.random.default_rng(0))
    assert batch.sizes == [(32, width)] * 2
    black_box = new_black_box(preprocessing="sam")
    stepper = build_stepper(AdaptationSettings(optimiser=optimiser))
    stepper.start(build_visual_prompt("basis"), 1)
    stepper.step(black_box, batch, torch.Generator().manual_seed(0), _query_directly)
    assert sum(len(images) for images, _ in black_box.queries) == 2 * stepper.queries_per_slice
    assert {images.shape[1:3] for images, _ in black_box.queries} == {(32, width)}
