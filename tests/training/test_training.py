from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from baps.adapters.adapter import Adapter
from baps.adapters.visual_prompt import VisualPrompt, build_visual_prompt, load_encoder
from baps.errors import BudgetSpentError, InputError
from baps.evaluation.cases import LabelledSlice
from baps.evaluation.scoring import score_slices
from baps.prompts import Prompt
from baps.training.batches import Batches
from baps.training.settings import AdaptationSettings
from baps.training.steps import PromptSpaceStepper
from baps.training.training import CurvePoint, train_visual_prompt

Slices = Callable[..., dict[str, list[LabelledSlice]]]
SETTINGS = AdaptationSettings(batch_size=8, curve_points=2, curve_slices=4, zoom="none", head="none")


def _pieces(slices: dict[str, list[LabelledSlice]]) -> list[LabelledSlice]:
    return [piece for pieces in slices.values() for piece in pieces]


def train(
    black_box: Any, slices: list[LabelledSlice], settings: AdaptationSettings, max_images: int, **others: Any
) -> tuple[Adapter, list[CurvePoint]]:
    """Train a new visual prompt, or the one that is given."""
    visual_prompt: VisualPrompt = others.pop("visual_prompt", None) or build_visual_prompt(
        settings.visual_prompt, settings.seed, settings.condition
    )
    batches = Batches(slices, load_encoder())
    curve = train_visual_prompt(black_box, visual_prompt, batches, settings, max_images, **others)
    return Adapter(visual_prompt), curve


@pytest.mark.parametrize("prompt", ["click", "box"])
def test_prompt_space_learns(new_black_box: Callable[..., Any], dim_slices: Slices, prompt: str) -> None:
    slices = _pieces(dim_slices(3))
    black_box = new_black_box()
    settings = replace(SETTINGS, prompt=prompt)
    made, curve = train(black_box, slices, settings, 1000)
    before = score_slices(new_black_box(), None, slices, prompt, 99, 1).mean()
    after = score_slices(new_black_box(), made, slices, prompt, 99, 1).mean()
    assert before < 0.1
    assert after > 0.8
    assert curve[0].dice < 0.1
    assert curve[-1].dice > 0.8


def test_the_published_method_runs(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    slices = _pieces(dim_slices(2))
    settings = replace(SETTINGS, visual_prompt="concat", optimiser="spsa_gc")
    made, curve = train(new_black_box(), slices, settings, 12 + 40 * 6)
    assert len(curve) == 3
    assert bool(made.state_dict()["visual_prompt.last.weight"].any())
    assert all(bool(torch.isfinite(value).all()) for value in made.state_dict().values())


def test_the_other_pairings_run(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    slices = _pieces(dim_slices(2))
    for visual_prompt, optimiser in (("concat", "prompt_space"), ("basis", "spsa_gc"), ("tone", "spsa_gc")):
        settings = replace(SETTINGS, visual_prompt=visual_prompt, optimiser=optimiser)
        made, _ = train(new_black_box(), slices, settings, 100)
        assert made.visual_prompt.kind == visual_prompt
        moved = [value for name, value in made.state_dict().items() if name.endswith(("bias", "constant"))]
        assert any(bool((value != 0).any()) for value in moved)


def test_spsa_keeps_its_perturbations_visible(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    """With c = 0.01 as published, one direction of this seed moves the untrained image by nothing at all."""
    black_box = new_black_box()
    settings = replace(SETTINGS, visual_prompt="concat", optimiser="spsa_gc", curve_points=1, curve_slices=1, seed=3)
    train(black_box, _pieces(dim_slices(1)), settings, 2 + 40)
    asked = np.concatenate([images.astype(float) for images, _ in black_box.queries[1:-1]])
    assert asked.shape == (10 * 4, 32, 32, 3)
    plus, minus = asked.reshape(2, 5, -1)  # Both signs of five directions.
    assert np.abs(plus - minus).mean(1).min() > 1


@pytest.mark.parametrize(("optimiser", "per_step"), [("prompt_space", 16), ("spsa_gc", 40)])
def test_images_asked_are_bounded(
    new_black_box: Callable[..., Any], dim_slices: Slices, optimiser: str, per_step: int
) -> None:
    slices = _pieces(dim_slices(3))
    settings = replace(SETTINGS, optimiser=optimiser)
    curve = 3 * 4
    for most in (curve + per_step, curve + 3 * per_step, curve + 4 * per_step - 1):
        black_box = new_black_box()
        black_box.segment(slices[0].image[None], [Prompt(((1.0, 1.0),))])  # What was asked before does not count.
        train(black_box, slices, settings, most)
        steps = (most - curve) // per_step
        asked = sum(len(images) for images, _ in black_box.queries)
        assert asked == black_box.images_queried
        assert asked - 1 <= most
        assert asked - 1 >= steps * per_step


@pytest.mark.parametrize("most", [15, 0, -100])
def test_too_few_images_are_refused(new_black_box: Callable[..., Any], dim_slices: Slices, most: int) -> None:
    black_box = new_black_box()
    with pytest.raises(
        InputError,
        match="are left for the steps of a training run besides its curve, but one step takes 16",
    ):
        train(black_box, _pieces(dim_slices(3)), SETTINGS, most)
    assert black_box.images_queried == 0


def test_the_curve(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    slices = _pieces(dim_slices(3))
    settings = replace(SETTINGS, curve_points=4, curve_slices=3, seed=5)
    black_box = new_black_box()
    made, curve = train(black_box, slices, settings, 15 + 8 * 16)
    assert [point.images for point in curve] == [3, 38, 73, 108, 143]
    assert black_box.images_queried == 143
    shown = [slices[0], slices[round(11 / 2)], slices[-1]]
    assert curve[0].dice == pytest.approx(score_slices(new_black_box(), None, shown, "click", 5, 1).mean())
    assert curve[-1].dice == pytest.approx(score_slices(new_black_box(), made, shown, "click", 5, 1).mean())
    curve_prompts = [tuple(prompts) for images, prompts in black_box.queries if len(images) == 3]
    assert len(curve_prompts) == 5
    assert len(set(curve_prompts)) == 1


def test_progress_is_told_after_every_step(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    told: list[tuple[int, int, int, float | None]] = []
    black_box = new_black_box()
    _, curve = train(
        black_box,
        _pieces(dim_slices(3)),
        SETTINGS,
        12 + 4 * 16,
        progress=lambda *now: told.append(now),  # type: ignore[arg-type]
    )
    assert [now[:2] for now in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [now[2] for now in told] == [4 + 16, 4 + 32 + 4, 8 + 48, 8 + 64 + 4]
    assert [now[3] for now in told] == [None, curve[1].dice, None, curve[2].dice]


def test_every_slice_comes_once_before_any_comes_again(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    """Each patient has one slice, whose organ lies in a cell of its own, so a click tells which slice was asked."""
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
        assert prompts[:3] == prompts[3:]  # The same mini-batch serves both signs.
        for prompt in prompts[:3]:
            ((x, y),) = prompt.positive
            (which,) = [row for row, piece in enumerate(slices) if piece.target[int(y), int(x)]]
            seen.append(which)
    assert sorted(seen[:6]) == list(range(6))
    assert sorted(seen[6:]) == list(range(6))


@pytest.mark.parametrize(("visual_prompt", "optimiser"), [("basis", "prompt_space"), ("concat", "spsa_gc")])
def test_seeds(new_black_box: Callable[..., Any], dim_slices: Slices, visual_prompt: str, optimiser: str) -> None:
    slices = _pieces(dim_slices(2))
    states, curves = [], []
    for seed in (1, 1, 2):
        settings = replace(SETTINGS, visual_prompt=visual_prompt, optimiser=optimiser, seed=seed)
        torch.manual_seed(len(states))  # The global state must play no part.
        made, curve = train(new_black_box(), slices, settings, 12 + 2 * 40)
        states.append(made.state_dict())
        curves.append(curve)
    assert curves[0] == curves[1]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_the_seed_makes_the_decoder(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    """The Fourier matrix is not trained, so it shows which seed the decoder was made with."""
    settings = replace(SETTINGS, visual_prompt="concat", seed=3)
    made, _ = train(new_black_box(), _pieces(dim_slices(2)), settings, 12 + 16)
    expected = build_visual_prompt("concat", 3).state_dict()["fourier"]
    assert torch.equal(made.state_dict()["visual_prompt.fourier"], expected)


def test_fewer_slices_than_a_batch(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    black_box = new_black_box()
    _, curve = train(black_box, dim_slices(1, per_patient=1)["patient 0"], SETTINGS, 3 + 2 * 6)
    assert (black_box.images_queried, len(curve)) == (15, 3)


def test_a_run_whose_curve_nobody_looks_at_has_none(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    black_box = new_black_box()
    _, curve = train(black_box, _pieces(dim_slices(3)), SETTINGS, 4 * 16, curve_points=0)
    assert (curve, black_box.images_queried) == ([], 64)


def test_who_watches_is_shown_every_point_of_the_curve(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    slices, black_box = _pieces(dim_slices(3)), new_black_box()
    shown: list[tuple[int, torch.Tensor]] = []

    def watch(images: int, adapter: Adapter) -> None:
        constant = adapter.state_dict()["visual_prompt.constant"].clone()
        shown.append((images, constant))
        black_box.segment(slices[0].image[None], [Prompt(((1.0, 1.0),))])  # Not counted.

    watched, curve = train(black_box, slices, SETTINGS, 200, callback=watch)
    assert [images for images, _ in shown] == [point.images for point in curve]
    assert len(shown) == 3
    assert not shown[0][1].any()
    assert torch.equal(shown[2][1], watched.state_dict()["visual_prompt.constant"])
    alone, same = train(new_black_box(), slices, SETTINGS, 200)
    assert same == curve
    assert all(torch.equal(alone.state_dict()[key], value) for key, value in watched.state_dict().items())


def test_a_visual_prompt_and_a_stepper_can_be_given(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    class Counting(PromptSpaceStepper):
        steps = 0

        def step(self, *what: Any) -> None:
            self.steps += 1

    given, stepper = build_visual_prompt("concat", 5), Counting(SETTINGS)
    before = {key: value.clone() for key, value in given.state_dict().items()}
    made, _ = train(
        new_black_box(), _pieces(dim_slices(3)), SETTINGS, 12 + 16 * 4, visual_prompt=given, stepper=stepper
    )
    assert made.visual_prompt is given
    assert stepper.steps == 4
    assert all(torch.equal(given.state_dict()[key], before[key]) for key in before)


def test_an_error_of_the_black_box_ends_the_training(failing_black_box: Any, dim_slices: Slices) -> None:
    """The thread that makes batches ready does not outlive it."""
    before = set(threading.enumerate())
    with pytest.raises(BudgetSpentError):
        train(failing_black_box, _pieces(dim_slices(3)), SETTINGS, 100)
    assert set(threading.enumerate()) <= before
