"""Answers of cheap black boxes that make known mistakes: what is asked, kept and replayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from baps.adapters.visual_prompt import VisualPrompt, build_visual_prompt, load_encoder
from baps.blackbox import BlackBox
from baps.errors import BudgetSpentError
from baps.evaluation.slices import LabelledSlice
from baps.prompts import Prompt
from baps.training.answers import MAX_SIZE, Answers, query_answers, query_more_answers
from baps.training.batches import Batches
from baps.training.evaluation_prompts import draw_evaluation_prompts
from baps.training.query_log import QueryLog
from tests.support.faulty_black_box import SIDE, FaultyBlackBox, Mistake, correct, dilate, erode, ignores_left_half

Slices = Callable[..., dict[str, list[LabelledSlice]]]
IDENTITY = build_visual_prompt("basis")


def _batches(dim_slices: Slices, patients: int = 8, each: int = 4) -> Batches:
    pieces = [piece for pieces in dim_slices(patients, each, side=SIDE).values() for piece in pieces]
    return Batches(pieces, load_encoder("statistics", ""))


def _first(
    black_box: BlackBox,
    batches: Batches,
    each: int = 4,
    kind: str = "click",
    seed: int = 0,
    visual_prompt: VisualPrompt = IDENTITY,
    query_log: QueryLog | None = None,
) -> Answers:
    patients = list(dict.fromkeys(piece.patient for piece in batches.slices))
    rows, prompts = draw_evaluation_prompts(batches, patients, kind, each, 12, seed)
    return query_answers(
        black_box, visual_prompt, batches, rows, prompts, query_log or QueryLog(None, {}, black_box), {"first": 0}
    )


def _more(
    black_box: BlackBox,
    batches: Batches,
    images: int,
    kind: str = "click",
    seed: int = 0,
    query_log: QueryLog | None = None,
    each: int = 4,
) -> Answers:
    query_log = query_log or QueryLog(None, {}, black_box)
    first = _first(black_box, batches, each, kind=kind, query_log=query_log)
    return query_more_answers(black_box, IDENTITY, batches, first, kind, images, seed, query_log, {"more": 0})


def _clicks(prompt: Prompt) -> int:
    return len(prompt.positive) + len(prompt.negative) + (prompt.box is not None)


@pytest.mark.parametrize(("each", "max_slices", "slices"), [(1, 12, 1), (3, 12, 3), (4, 12, 4), (9, 12, 4), (5, 2, 2)])
def test_every_patient_judges_with_as_many_prompts(dim_slices: Slices, each: int, max_slices: int, slices: int) -> None:
    batches = _batches(dim_slices, patients=3)
    patients = ["patient 0", "patient 2"]
    rows, prompts = draw_evaluation_prompts(batches, patients, "click", each, max_slices, 1)
    judged = [batches.slices[row].patient for row in rows]
    assert judged == patients * each  # One prompt of each patient before the next ones.
    assert len(set(rows)) == 2 * slices
    for row, prompt in zip(rows, prompts, strict=True):
        ((x, y),) = prompt.positive
        assert batches.slices[row].target[int(y), int(x)]
    if each > slices:  # Several prompts on a slice differ.
        assert len(set(zip(rows, prompts, strict=True))) > len(set(rows))
    assert draw_evaluation_prompts(batches, patients, "click", each, max_slices, 1) == (rows, prompts)
    assert draw_evaluation_prompts(batches, patients, "click", each, max_slices, 2)[1] != prompts
    _, boxes = draw_evaluation_prompts(batches, patients, "box", each, max_slices, 1)
    assert all(prompt.box for prompt in boxes)


def test_answers_belong_to_their_prompts(dim_slices: Slices) -> None:
    black_box, batches = FaultyBlackBox(ignores_left_half), _batches(dim_slices)
    answers = _first(black_box, batches, each=5)
    queries = black_box.queries
    queried = [pair for _, prompts, masks in queries for pair in zip(prompts, masks, strict=True)]
    assert [prompt for prompt, _ in queried] == answers.prompts
    np.testing.assert_array_equal(answers.probability, np.round(255 * np.stack([answer for _, answer in queried])))
    images = np.concatenate([images for images, _, _ in black_box.queries])
    np.testing.assert_array_equal(images, np.stack([batches.slices[row].image for row in answers.rows]))
    few = answers.select([3, 1])
    assert (few.rows, few.prompts) == ([answers.rows[n] for n in (3, 1)], [answers.prompts[n] for n in (3, 1)])
    np.testing.assert_array_equal(few.probability, answers.probability[[3, 1]])


def test_answers_to_large_images_are_kept_smaller(dim_slices: Slices, new_black_box: Callable[..., BlackBox]) -> None:
    side = 2 * MAX_SIZE
    black_box = new_black_box(side=side)
    batches = Batches(dim_slices(1, 1, side=side)["patient 0"], load_encoder("statistics", ""))
    answers = _first(black_box, batches, each=1)
    assert answers.probability.shape == (1, MAX_SIZE, MAX_SIZE)
    whole = black_box.segment(batches.slices[0].image[None], answers.prompts)[0]
    pooled = whole.reshape(MAX_SIZE, 2, MAX_SIZE, 2).mean((1, 3))
    np.testing.assert_allclose(answers.probability[0] / 255, pooled, atol=0.003)


def test_the_adapted_image_is_asked(dim_slices: Slices) -> None:
    batches, black_box = _batches(dim_slices), FaultyBlackBox(dilate)
    brighter = build_visual_prompt("basis")
    with torch.no_grad():
        brighter.head.bias.view(3, 4)[:, 0] = 0.1  # type: ignore[union-attr, operator]
    answers = _first(black_box, batches, 1, visual_prompt=brighter)
    given = np.stack([batches.slices[row].image for row in answers.rows]).astype(int)
    shown = np.concatenate([images for images, _, _ in black_box.queries]).astype(int)
    assert set((shown - given).ravel().tolist()) <= {25, 26}  # A tenth of white is 25.5 grey levels.


@pytest.mark.parametrize("images", [1, 2, 3, 7, 32, 33, 64, 100, 129, 200])
@pytest.mark.parametrize("kind", ["click", "box"])
def test_as_many_images_are_asked_as_may_be(dim_slices: Slices, images: int, kind: str) -> None:
    """A black box that is always wrong needs every correction."""
    black_box, batches = FaultyBlackBox(ignores_left_half), _batches(dim_slices)
    first = 8 * 8
    black_box.budget = first + images
    answers = _more(black_box, batches, images, kind, each=8)
    assert black_box.images_queried - first == images == len(answers.rows) == len(answers.prompts)
    level = 2 * images // 3
    numbers = [_clicks(prompt) for prompt in answers.prompts]
    assert [numbers.count(n) for n in range(2, 6)] == [level >> n for n in range(1, 5)]
    boxes = [prompt.box is not None for prompt in answers.prompts if _clicks(prompt) == 1]
    assert abs(boxes.count(kind == "click") - boxes.count(kind == "box")) <= 1


def test_where_answers_are_right_no_correction_is_asked_for(dim_slices: Slices) -> None:
    batches = _batches(dim_slices)
    black_box = FaultyBlackBox(correct)
    for row, piece in enumerate(batches.slices):  # So that the mask is exact to the pixel.
        image = np.where(piece.target, 200, 0).astype(np.uint8)
        batches.slices[row] = replace(piece, image=np.repeat(image[..., None], 3, axis=-1))  # type: ignore[index, arg-type]
    black_box._segment = lambda images, prompts: (images[..., 0] > 100).astype(np.float32)  # type: ignore[method-assign]
    answers = _more(black_box, batches, 99)
    assert len(answers.rows) == 99 - (33 + 16 + 8 + 4)
    assert all(_clicks(prompt) == 1 for prompt in answers.prompts)


@pytest.mark.parametrize("mistake", [dilate, erode, ignores_left_half])
def test_corrections_lie_where_the_answer_was_wrong(dim_slices: Slices, mistake: Mistake) -> None:
    """Each on what was missed or on what was too much, and the prompt before it was asked before."""
    batches, black_box = _batches(dim_slices), FaultyBlackBox(mistake)
    query_log = QueryLog(None, {}, black_box)
    first = _first(black_box, batches, query_log=query_log)
    more = query_more_answers(black_box, IDENTITY, batches, first, "click", 99, 0, query_log, {"more": 0})
    answers = first + more
    asked = dict(zip(zip(answers.rows, answers.prompts, strict=True), answers.probability, strict=True))
    corrections = 0
    for row, prompt in zip(more.rows, more.prompts, strict=True):
        if _clicks(prompt) == 1:
            continue
        corrections += 1
        target = batches.slices[row].target
        right_places = []
        for is_negative in (False, True):
            clicks = prompt.negative if is_negative else prompt.positive
            if not clicks or (not is_negative and prompt.box is None and len(clicks) == 1):
                continue
            before = replace(prompt, **{"negative" if is_negative else "positive": clicks[:-1]})
            if (row, before) in asked:
                x, y = clicks[-1]
                wrong: NDArray[np.bool_] = asked[row, before] > 127
                wrong = wrong & ~target if is_negative else target & ~wrong
                right_places.append(bool(wrong[int(y), int(x)]))
        assert any(right_places)
    assert corrections == 33 + 16 + 8 + 4


def test_a_black_box_for_boxes_alone_is_asked_with_boxes_alone(dim_slices: Slices) -> None:
    black_box, batches = FaultyBlackBox(dilate, clicks=False), _batches(dim_slices)
    answers = _more(black_box, batches, 50, "box")
    assert len(answers.rows) == 50
    assert all(p.box and not p.positive and not p.negative for p in answers.prompts)


def test_a_black_box_for_clicks_alone_is_asked_with_clicks_alone(dim_slices: Slices) -> None:
    answers = _more(FaultyBlackBox(dilate, boxes=False), _batches(dim_slices), 60)
    assert len(answers.rows) == 60
    assert all(prompt.box is None for prompt in answers.prompts)


def test_seeds(dim_slices: Slices) -> None:
    batches = _batches(dim_slices)
    one, same, other = (_more(FaultyBlackBox(ignores_left_half), batches, 60, seed=seed) for seed in (1, 1, 2))
    assert (one.rows, one.prompts) == (same.rows, same.prompts)
    np.testing.assert_array_equal(one.probability, same.probability)
    assert one.prompts != other.prompts


@pytest.mark.parametrize("budget", [0, 32, 64, 90])
def test_from_the_log_they_come_out_bit_by_bit(dim_slices: Slices, tmp_path: Path, budget: int) -> None:
    """However far the answers had come when it was broken off; those that are there are not asked again."""
    batches, log = _batches(dim_slices), tmp_path / "log.jsonl"
    unbroken = _more(FaultyBlackBox(ignores_left_half), batches, 150)
    broken, rest = FaultyBlackBox(ignores_left_half), FaultyBlackBox(ignores_left_half)
    broken.budget = budget
    query_log = QueryLog(log, {}, broken)
    with pytest.raises(BudgetSpentError):
        _more(broken, batches, 150, query_log=query_log)
    query_log.close()
    query_log = QueryLog(log, {}, rest)
    again = _more(rest, batches, 150, query_log=query_log)
    query_log.close()
    assert query_log.replayed_images == broken.images_queried
    assert rest.images_queried == 32 + 150 - broken.images_queried
    assert (again.rows, again.prompts) == (unbroken.rows, unbroken.prompts)
    np.testing.assert_array_equal(again.probability, unbroken.probability)
