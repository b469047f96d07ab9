"""The head learns from the answers of cheap black boxes that make known mistakes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from baps.adapters.adapter import Adapter
from baps.adapters.output_head import OutputHead
from baps.adapters.visual_prompt import build_visual_prompt, load_encoder
from baps.blackbox import BlackBox
from baps.evaluation.scoring import score_slices
from baps.evaluation.slices import LabelledSlice
from baps.imaging.metrics import dice
from baps.imaging.windowing import Window
from baps.prompts import Prompt
from baps.training.answers import query_answers, query_more_answers
from baps.training.batches import Batches
from baps.training.evaluation_prompts import draw_evaluation_prompts
from baps.training.head_training import HeadData, score_answers, train_head
from baps.training.query_log import QueryLog
from tests.support.faulty_black_box import SIDE, FaultyBlackBox, Mistake, correct, dilate, erode, ignores_left_half

Slices = Callable[..., dict[str, list[LabelledSlice]]]
_WINDOW = Window(0, 255)
IDENTITY = build_visual_prompt("basis")


def _batches(dim_slices: Slices, seed: int = 0, zoom: float = 1.0) -> Batches:
    pieces = [piece for pieces in dim_slices(8, side=SIDE, seed=seed).values() for piece in pieces]
    return Batches(pieces, load_encoder("statistics", ""), zoom)


def _data(black_box: BlackBox, batches: Batches, more: int = 0, kind: str = "click", each: int = 8) -> HeadData:
    patients, log = list(dict.fromkeys(piece.patient for piece in batches.slices)), QueryLog(None, {}, black_box)
    rows, prompts = draw_evaluation_prompts(batches, patients, kind, each, 12, 0)
    answers = query_answers(black_box, IDENTITY, batches, rows, prompts, log, {})
    if more:
        answers += query_more_answers(black_box, IDENTITY, batches, answers, kind, more, 0, log, {})
    return HeadData(batches, answers, 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["click", "box"])
@pytest.mark.parametrize("mistake", [dilate, erode], ids=["too wide", "too narrow"])
def test_a_black_box_that_is_always_wrong_alike_is_corrected(dim_slices: Slices, mistake: Mistake, kind: str) -> None:
    """On other slices than those that were learned from."""
    black_box, batches, others = FaultyBlackBox(mistake), _batches(dim_slices), _batches(dim_slices, seed=1)
    head = train_head(_data(black_box, batches, 60, kind), None, True, 150, 0)
    before = score_slices(black_box, None, others.slices, kind, 5, 1)
    after = score_slices(black_box, Adapter(IDENTITY, head), others.slices, kind, 5, 1)
    assert before.mean() < 0.75
    assert after.mean() > 0.9
    assert (after > before).mean() > 0.95


@pytest.mark.slow
def test_background_clicks_count_that_the_black_box_ignores(dim_slices: Slices) -> None:
    """The same answer and image: what is clicked decides, so the head must have learned from corrections."""
    black_box, batches, others = FaultyBlackBox(_two), _pairs(0), _pairs(1)
    data = _data(black_box, batches, 160, each=64)
    assert any(prompt.negative for prompt in data.answers.prompts)
    made = Adapter(IDENTITY, train_head(data, None, True, 150, 0))
    left, right_one = (16.0, 32.0), (48.0, 32.0)
    kept, dropped = [], []
    for piece in others.slices:
        here, there = (left, right_one) if piece.target[32, 16] else (right_one, left)
        pixels, prompts = piece.image[None], [Prompt((here,), (there,))]
        answer = black_box.segment(pixels, prompts)
        refined = made.refine_masks(made.crop(pixels, prompts), answer)[0] > 0.5
        kept.append(dice(refined, piece.target))
        dropped.append(not refined[int(there[1]), int(there[0])])
        assert dice(answer[0] > 0.5, piece.target) < 0.8
    assert np.mean(kept) > 0.9
    assert all(dropped)


def _two(target: NDArray[np.bool_], _: Prompt) -> NDArray[np.bool_]:
    """All that is bright, whichever was clicked."""
    return target


def _pairs(seed: int) -> Batches:
    """Two equal discs, of which one is the object."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    pieces = []
    for number in range(16):
        discs = [(rows - 32) ** 2 + (columns - x) ** 2 < random.uniform(8, 11) ** 2 for x in (16, 48)]
        grey = np.where(discs[0] | discs[1], 105, 40) + random.normal(0, 4, (SIDE, SIDE))
        image = np.repeat(grey.round().clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)
        pieces.append(LabelledSlice("one", image, discs[number % 2], _WINDOW))
    return Batches(pieces, load_encoder("statistics", ""))


def test_a_head_learns_from_the_chosen_answers_alone(dim_slices: Slices) -> None:
    data = _data(FaultyBlackBox(dilate), _batches(dim_slices), each=4)
    chosen = np.arange(len(data.answers.rows)) % 2 == 0
    kept = train_head(data, chosen, True, 5, 0).state_dict()
    changed = HeadData(data.batches, data.answers, 0)
    changed.varied[~torch.from_numpy(chosen)] = 9.0
    again = train_head(changed, chosen, True, 5, 0)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in kept.items())
    other = train_head(changed, ~chosen, True, 5, 0)
    assert not all(torch.equal(value, other.state_dict()[key]) for key, value in kept.items())


@pytest.mark.parametrize("zoom", [1.0, 0.5])
def test_scores_are_those_of_the_adapter(dim_slices: Slices, lively_head: OutputHead, zoom: float) -> None:
    """What is judged on kept answers is what clicks get; rounding to 1/255 changes few pixels."""
    black_box, batches = FaultyBlackBox(ignores_left_half), _batches(dim_slices, zoom=zoom)
    data = _data(black_box, batches, each=4)
    for head in (None, lively_head):
        adapter = Adapter(IDENTITY, head, zoom)
        expected = []
        for row, prompt in zip(data.answers.rows, data.answers.prompts, strict=True):
            crops = adapter.crop(batches.slices[row].image[None], [prompt])
            answer = black_box.segment(adapter.transform_images(crops), crops.prompts)
            expected.append(dice(adapter.refine_masks(crops, answer)[0] > 0.5, batches.slices[row].target))
        np.testing.assert_allclose(score_answers(data, head), expected, atol=0.02)
    some = np.arange(len(data.answers.rows)) % 3 == 0
    np.testing.assert_array_equal(score_answers(data, lively_head, some), score_answers(data, lively_head)[some])


@pytest.mark.slow
def test_a_black_box_that_is_right_is_left_alone(dim_slices: Slices) -> None:
    black_box, batches, others = FaultyBlackBox(correct), _batches(dim_slices), _batches(dim_slices, seed=1)
    made = Adapter(IDENTITY, train_head(_data(black_box, batches), None, True, 150, 0))
    before = score_slices(black_box, None, others.slices, "click", 5, 1)
    after = score_slices(black_box, made, others.slices, "click", 5, 1)
    assert before.mean() > 0.9
    assert after.mean() > before.mean() - 0.02


def test_a_head_depends_on_the_answers_and_the_seed_alone(dim_slices: Slices) -> None:
    data = _data(FaultyBlackBox(dilate), _batches(dim_slices), each=2)
    states = []
    for number, (seed, augmented) in enumerate(((0, True), (0, True), (1, True), (0, False))):
        torch.manual_seed(number)  # The global state must play no part.
        states.append(train_head(data, None, augmented, 5, seed).state_dict())
    same = [all(torch.equal(states[0][key], state[key]) for key in state) for state in states]
    assert same == [True, True, False, False]


@pytest.mark.parametrize("count", [1, 2, 9])
def test_few_answers_are_enough_to_run(dim_slices: Slices, count: int) -> None:
    data = _data(FaultyBlackBox(dilate), _batches(dim_slices), each=2)
    head = train_head(data, np.arange(len(data.answers.rows)) < count, False, 5, 0)
    assert not head.training
    assert all(bool(torch.isfinite(value).all()) for value in head.state_dict().values())
