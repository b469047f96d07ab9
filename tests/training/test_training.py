from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from baps.adapters.adapter import Adapter
from baps.adapters.visual_prompt import build_visual_prompt
from baps.errors import BudgetSpentError, InputError
from baps.evaluation.cases import LabelledSlice
from baps.evaluation.scoring import score_slices
from baps.prompts import Prompt
from baps.training.settings import AdaptationSettings
from baps.training.steps import PromptSpaceStepper
from baps.training.training import train

Slices = Callable[..., dict[str, list[LabelledSlice]]]
SETTINGS = AdaptationSettings(batch_size=8, curve_points=2, curve_slices=4, zoom="none", head="none")
WITH_HEAD = replace(SETTINGS, head="convolutional")


def _pieces(slices: dict[str, list[LabelledSlice]]) -> list[LabelledSlice]:
    return [piece for pieces in slices.values() for piece in pieces]


@pytest.mark.parametrize("prompt", ["click", "box"])
def test_prompt_space_improves_dice(new_black_box: Callable[..., Any], dim_slices: Slices, prompt: str) -> None:
    slices = _pieces(dim_slices(3))
    black_box = new_black_box()
    settings = replace(SETTINGS, prompt=prompt)
    adapter, curve = train(black_box, slices, settings, 1000)
    before = score_slices(new_black_box(), None, slices, prompt, 99, 1).mean()
    after = score_slices(new_black_box(), adapter, slices, prompt, 99, 1).mean()
    assert before < 0.1
    assert after > 0.8
    assert curve[0].dice < 0.1
    assert curve[-1].dice > 0.8


def test_the_published_method_runs(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    slices = _pieces(dim_slices(2))
    settings = replace(SETTINGS, visual_prompt="concat", optimiser="spsa_gc")
    adapter, curve = train(new_black_box(), slices, settings, 12 + 40 * 6)
    assert len(curve) == 3
    assert bool(adapter.state_dict()["visual_prompt.last.weight"].any())
    assert all(bool(torch.isfinite(value).all()) for value in adapter.state_dict().values())


def test_the_other_pairings_run(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    slices = _pieces(dim_slices(2))
    for visual_prompt, optimiser in (("concat", "prompt_space"), ("basis", "spsa_gc")):
        settings = replace(SETTINGS, visual_prompt=visual_prompt, optimiser=optimiser)
        adapter, _ = train(new_black_box(), slices, settings, 100)
        assert adapter.visual_prompt.kind == visual_prompt
        moved = [value for name, value in adapter.state_dict().items() if name.endswith(("head.bias", "last.bias"))]
        assert any(bool((value != 0).any()) for value in moved)


def test_spsa_keeps_its_perturbations_visible(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    """With c = 0.01 as published, one direction of this seed does not change the untrained image at all."""
    black_box = new_black_box()
    settings = replace(SETTINGS, visual_prompt="concat", optimiser="spsa_gc", curve_points=1, curve_slices=1, seed=3)
    train(black_box, _pieces(dim_slices(1)), settings, 2 + 40)
    queried = np.concatenate([images.astype(float) for images, _ in black_box.queries[1:-1]])
    assert queried.shape == (10 * 4, 32, 32, 3)
    plus, minus = queried.reshape(2, 5, -1)  # Both signs of five directions.
    assert np.abs(plus - minus).mean(1).min() > 1


@pytest.mark.parametrize(("optimiser", "per_step"), [("prompt_space", 16), ("spsa_gc", 40)])
def test_queried_images_are_limited(
    new_black_box: Callable[..., Any], dim_slices: Slices, optimiser: str, per_step: int
) -> None:
    slices = _pieces(dim_slices(3))
    settings = replace(SETTINGS, optimiser=optimiser)
    curve = 3 * 4
    for maximum in (curve + per_step, curve + 3 * per_step, curve + 4 * per_step - 1):
        black_box = new_black_box()
        black_box.segment(slices[0].image[None], [Prompt(((1.0, 1.0),))])  # Earlier queries do not count.
        train(black_box, slices, settings, maximum)
        steps = (maximum - curve) // per_step
        queried = sum(len(images) for images, _ in black_box.queries)
        assert queried == black_box.images_queried
        assert queried - 1 <= maximum
        assert queried - 1 >= steps * per_step


@pytest.mark.parametrize("maximum", [15, 0, -100])
def test_too_few_images_are_refused(new_black_box: Callable[..., Any], dim_slices: Slices, maximum: int) -> None:
    black_box = new_black_box()
    with pytest.raises(
        InputError,
        match="are left for the steps of a training run besides its zoom, curve and head, but one step takes 16",
    ):
        train(black_box, _pieces(dim_slices(3)), SETTINGS, maximum)
    assert black_box.images_queried == 0


def test_training_curve(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    slices = _pieces(dim_slices(3))
    settings = replace(SETTINGS, curve_points=4, curve_slices=3, seed=5)
    black_box = new_black_box()
    adapter, curve = train(black_box, slices, settings, 15 + 8 * 16)
    assert [point.images for point in curve] == [3, 38, 73, 108, 143]
    assert black_box.images_queried == 143
    encoded_slices = [slices[0], slices[round(11 / 2)], slices[-1]]
    assert curve[0].dice == pytest.approx(score_slices(new_black_box(), None, encoded_slices, "click", 5, 1).mean())
    assert curve[-1].dice == pytest.approx(score_slices(new_black_box(), adapter, encoded_slices, "click", 5, 1).mean())
    curve_prompts = [tuple(prompts) for images, prompts in black_box.queries if len(images) == 3]
    assert len(curve_prompts) == 5
    assert len(set(curve_prompts)) == 1


def test_progress_is_reported_after_every_step(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    reports: list[tuple[int, int, int, float | None]] = []
    black_box = new_black_box()
    _, curve = train(
        black_box,
        _pieces(dim_slices(3)),
        SETTINGS,
        12 + 4 * 16,
        progress=lambda *now: reports.append(now),  # type: ignore[arg-type]
    )
    assert [now[:2] for now in reports] == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    assert [now[2] for now in reports] == [4 + 16, 4 + 32 + 4, 8 + 48, 8 + 64 + 4, 8 + 64 + 4]
    assert [now[3] for now in reports] == [None, curve[1].dice, None, curve[2].dice, None]


def test_every_slice_is_used_once_per_epoch(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    """Each patient has one slice with the organ in a different cell, so that a click identifies the slice."""
    slices = _pieces(dim_slices(6, per_patient=1))
    black_box = new_black_box()
    train(
        black_box,
        slices,
        replace(SETTINGS, batch_size=3, curve_points=1, curve_slices=1, correction_ratio=0),
        2 + 6 * 4,
    )
    steps = [prompts for images, prompts in black_box.queries if len(images) == 6]
    assert len(steps) == 4
    seen = []
    for prompts in steps:
        assert prompts[:3] == prompts[3:]  # The same mini-batch is used for both signs.
        for prompt in prompts[:3]:
            ((x, y),) = prompt.positive
            (which,) = [row for row, piece in enumerate(slices) if piece.target[int(y), int(x)]]
            seen.append(which)
    assert sorted(seen[:6]) == list(range(6))
    assert sorted(seen[6:]) == list(range(6))


@pytest.mark.parametrize(("visual_prompt", "optimiser"), [("basis", "prompt_space"), ("concat", "spsa_gc")])
def test_result_depends_on_the_seed(
    new_black_box: Callable[..., Any], dim_slices: Slices, visual_prompt: str, optimiser: str
) -> None:
    slices = _pieces(dim_slices(2))
    states, curves = [], []
    for seed in (1, 1, 2):
        settings = replace(SETTINGS, visual_prompt=visual_prompt, optimiser=optimiser, seed=seed)
        torch.manual_seed(len(states))  # The global random state must not matter.
        adapter, curve = train(new_black_box(), slices, settings, 12 + 2 * 40)
        states.append(adapter.state_dict())
        curves.append(curve)
    assert curves[0] == curves[1]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_decoder_depends_on_the_seed(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    """The Fourier matrix is not trained, so that it shows the seed of the decoder."""
    settings = replace(SETTINGS, visual_prompt="concat", seed=3)
    visual_prompt, _ = train(new_black_box(), _pieces(dim_slices(2)), settings, 12 + 16)
    expected = build_visual_prompt("concat", 3).state_dict()["fourier"]
    assert torch.equal(visual_prompt.state_dict()["visual_prompt.fourier"], expected)


def test_fewer_slices_than_a_batch(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    black_box = new_black_box()
    _, curve = train(black_box, dim_slices(1, per_patient=1)["patient 0"], SETTINGS, 3 + 2 * 6)
    assert (black_box.images_queried, len(curve)) == (15, 3)


def test_run_without_curve_points_has_no_curve(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    black_box = new_black_box()
    _, curve = train(black_box, _pieces(dim_slices(3)), SETTINGS, 4 * 16, curve_points=0)
    assert (curve, black_box.images_queried) == ([], 64)


@pytest.mark.usefixtures("short_head")
def test_images_are_shared_between_prompt_and_head(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    """After the curve a third of the images, at most 800, is for the head, and no image is wasted."""
    slices = _pieces(dim_slices(3))
    for maximum, curve, steps, head in ((100, 12, 3, 29), (400, 12, 16, 129), (2700, 12, 118, 800)):
        black_box = new_black_box()
        adapter, points = train(black_box, slices, WITH_HEAD, maximum)
        assert adapter.head is not None
        assert black_box.images_queried <= maximum
        # If few masks are wrong, no corrections are queried; first prompts take at least half, rounded up.
        minimum = curve + 16 * steps + head // 2
        assert minimum <= black_box.images_queried <= curve + 16 * steps + head
        assert points[-1].images == black_box.images_queried


@pytest.mark.usefixtures("short_head")
def test_curve_ends_with_the_adapter_that_is_returned(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    slices = _pieces(dim_slices(3))
    reports: list[tuple[int, int, int, float | None]] = []
    black_box, settings = new_black_box(), replace(WITH_HEAD, curve_points=3)
    trained, curve = train(black_box, slices, settings, 200, progress=lambda *now: reports.append(now))  # type: ignore[arg-type]
    assert trained.head is not None
    assert not trained.head.training
    encoded_slices = [slices[row] for row in (0, 4, 7, 11)]
    scores = [
        score_slices(new_black_box(), adapter, encoded_slices, "click", 0, 1).mean()
        for adapter in (None, Adapter(trained.visual_prompt), trained)
    ]
    assert len(curve) == 4
    assert [curve[0].dice, curve[2].dice, curve[3].dice] == pytest.approx(scores)
    assert curve[3].images == black_box.images_queried
    assert reports[-1] == (reports[-1][1], reports[-1][1], black_box.images_queried, curve[3].dice)
    assert [now[0] for now in reports] == list(range(1, reports[-1][1] + 1))


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ["click", "box"])
def test_default_head_improves_dice(new_black_box: Callable[..., Any], dim_slices: Slices, prompt: str) -> None:
    """With so few images the visual prompt alone leaves many errors."""
    slices = _pieces(dim_slices(3))
    settings = AdaptationSettings(batch_size=8, prompt=prompt)
    trained, _ = train(new_black_box(), slices, settings, 90)
    assert trained.head is not None
    plain, headed = (
        score_slices(new_black_box(), adapter, slices, prompt, 99, 1).mean()
        for adapter in (Adapter(trained.visual_prompt), trained)
    )
    assert headed > plain + 0.1
    assert headed > 0.8


def test_training_continues_from_another_adapter(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    slices = _pieces(dim_slices(3))
    first, _ = train(new_black_box(), slices, SETTINGS, 1000)
    state_before = {key: value.clone() for key, value in first.state_dict().items()}
    warm, curve = train(new_black_box(), slices, replace(SETTINGS, seed=1), 80, start_from=first)
    assert curve[0].dice == pytest.approx(
        score_slices(new_black_box(), first, [slices[row] for row in (0, 4, 7, 11)], "click", 1, 1).mean()
    )
    assert curve[0].dice > 0.8
    assert not all(torch.equal(warm.state_dict()[key], state_before[key]) for key in state_before)
    assert all(
        torch.equal(first.state_dict()[key], state_before[key]) for key in state_before
    )  # The served adapter is not changed.


@pytest.mark.parametrize("other_settings", [{"visual_prompt": "concat"}, {"condition": "click"}], ids=str)
def test_training_does_not_continue_from_another_kind(
    new_black_box: Callable[..., Any], dim_slices: Slices, other_settings: dict[str, Any]
) -> None:
    slices = _pieces(dim_slices(3))
    first, _ = train(new_black_box(), slices, replace(SETTINGS, **other_settings), 100)
    cold, _ = train(new_black_box(), slices, SETTINGS, 100)
    adapter, _ = train(new_black_box(), slices, SETTINGS, 100, start_from=first)
    assert all(torch.equal(adapter.state_dict()[key], value) for key, value in cold.state_dict().items())


@pytest.mark.usefixtures("short_head")
def test_callback_gets_every_point_of_the_curve(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    slices, black_box = _pieces(dim_slices(3)), new_black_box()
    encoded_slices: list[tuple[int, bool, torch.Tensor]] = []

    def watch(images: int, adapter: Adapter) -> None:
        bias = adapter.state_dict()["visual_prompt.head.bias"].clone()
        encoded_slices.append((images, adapter.head is not None, bias))
        black_box.segment(slices[0].image[None], [Prompt(((1.0, 1.0),))])  # These images are not counted.

    watched, curve = train(black_box, slices, WITH_HEAD, 200, callback=watch)
    assert [images for images, _, _ in encoded_slices] == [point.images for point in curve]
    assert [head for _, head, _ in encoded_slices] == [False, False, True]
    assert not encoded_slices[0][2].any()
    assert torch.equal(encoded_slices[2][2], watched.state_dict()["visual_prompt.head.bias"])
    alone, same = train(new_black_box(), slices, WITH_HEAD, 200)
    assert same == curve
    assert all(torch.equal(alone.state_dict()[key], value) for key, value in watched.state_dict().items())


def test_visual_prompt_and_stepper_can_be_passed(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    class Counting(PromptSpaceStepper):
        steps = 0

        def step(self, *arguments: Any) -> None:
            self.steps += 1

    visual_prompt, stepper = build_visual_prompt("concat", 5), Counting(SETTINGS)
    before = {key: value.clone() for key, value in visual_prompt.state_dict().items()}
    adapter, _ = train(
        new_black_box(), _pieces(dim_slices(3)), SETTINGS, 12 + 16 * 4, visual_prompt=visual_prompt, stepper=stepper
    )
    assert adapter.visual_prompt is visual_prompt
    assert stepper.steps == 4
    assert all(torch.equal(visual_prompt.state_dict()[key], before[key]) for key in before)


def test_error_of_the_black_box_ends_the_training(failing_black_box: Any, dim_slices: Slices) -> None:
    """The thread that prepares batches ends too."""
    before = set(threading.enumerate())
    with pytest.raises(BudgetSpentError):
        train(failing_black_box, _pieces(dim_slices(3)), SETTINGS, 100)
    assert set(threading.enumerate()) <= before
