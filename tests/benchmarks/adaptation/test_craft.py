from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from baps.evaluation.scoring import score_slices
from baps.training.batches import Batches
from benchmarks.adaptation import craft
from benchmarks.adaptation.arms import Arena
from benchmarks.adaptation.constant_prompt import constant_prompt
from benchmarks.adaptation.craft import CONSISTENCY, CraftStepper, craft_like, divergence
from benchmarks.adaptation.steppers import CmaEsStepper


@pytest.fixture
def new_arena(new_black_box: Callable[..., Any], dim_slices: Callable[..., Any]) -> Callable[[int], Arena]:
    def make(max_images: int) -> Arena:
        patients = dim_slices(4)
        test = [patients.pop("patient 3")]
        return Arena(new_black_box(), new_black_box(), patients, test, 0, max_images)

    return make


def test_prompt_and_head_learn_within_the_budget(new_arena: Callable[[int], Arena]) -> None:
    arena = new_arena(800)
    _, adapter = craft_like(arena)
    assert adapter is not None
    assert adapter.zoom == 1
    assert 700 < arena.black_box.images_queried <= 800

    def dice(one: Any) -> float:
        return float(score_slices(arena.examiner, one, arena.test[0], "click", 99, 1).mean())

    assert dice(None) < 0.1
    assert dice(adapter) > 0.6
    assert bool(adapter.visual_prompt.state_dict()["head.bias"].any())
    assert dice(adapter) != dice(replace(adapter, head=None))


def test_a_run_is_repeatable(new_arena: Callable[[int], Arena], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(craft, "_HEAD_STEPS", 2)
    curves = []
    for _ in range(2):
        arena = new_arena(250)
        craft_like(arena)
        curves.append(arena.curve)
    assert curves[0] == curves[1]


def test_the_search_is_penalised_for_answers_that_the_head_changes(
    new_arena: Callable[[int], Arena], lively_head: Any
) -> None:
    stepper, prompt = CraftStepper(0), constant_prompt()
    batch = Batches(new_arena(0).labelled, prompt.encoder).draw([0, 1], "click", 0, np.random.default_rng(0))
    answers = torch.rand(4, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = CmaEsStepper(0).answer_losses(answers, batch)
    torch.testing.assert_close(stepper.answer_losses(answers, batch), plain)  # The untrained head changes nothing.
    stepper.head = lively_head
    assert bool((stepper.answer_losses(answers, batch) > plain + 0.01 * CONSISTENCY).all())


def test_divergence_is_that_of_kullback_and_leibler() -> None:
    target, odds = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.distributions.kl_divergence(
        torch.distributions.Bernoulli(logits=target), torch.distributions.Bernoulli(logits=odds)
    )
    torch.testing.assert_close(divergence(target, odds), expected.mean((1, 2)))
