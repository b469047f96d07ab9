from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from baps.adapters.adapter import Adapter
from baps.adapters.output_head import OutputHead
from baps.adapters.visual_prompt import build_visual_prompt
from baps.evaluation.cases import LabelledSlice
from baps.evaluation.interactive import build_segment_function
from baps.evaluation.scoring import score_slices
from baps.imaging.metrics import dice
from baps.prompts import Prompt

Slices = Callable[..., dict[str, list[LabelledSlice]]]


def _brighter() -> Adapter:
    """Make an adapter that adds a third of white, so that dim organs but not the background exceed the threshold."""
    visual_prompt = build_visual_prompt("basis")
    with torch.no_grad():
        dict(visual_prompt.named_parameters())["head.bias"].view(3, 4)[:, 0] = 1 / 3
    return Adapter(visual_prompt)


@pytest.mark.parametrize("kind", ["click", "box"])
def test_unadapted_and_adapted_get_the_same_prompts(
    new_black_box: Callable[..., Any], dim_slices: Slices, kind: str
) -> None:
    slices = dim_slices(5)["patient 1"] * 5  # More than one batch.
    plain, adapted = new_black_box(), new_black_box()
    before = score_slices(plain, None, slices, kind, 3, 2)
    after = score_slices(adapted, _brighter(), slices, kind, 3, 2)
    assert [prompts for _, prompts in plain.queries] == [prompts for _, prompts in adapted.queries]
    assert before.shape == after.shape == (20, 2)
    assert after.min() > 0.9
    assert before.max() < 0.1


def test_prompts_differ_between_slices_sets_and_seeds(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    slices = dim_slices(1)["patient 0"][:1] * 4
    results = []
    for seed in (1, 2):
        black_box = new_black_box()
        score_slices(black_box, None, slices, "click", seed, 3)
        results += [prompt for _, prompts in black_box.queries for prompt in prompts]
    assert len(results) == 24
    assert len(set(results)) > 12


def test_prompts_do_not_depend_on_the_batch(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    slices = [piece for pieces in dim_slices(5).values() for piece in pieces]
    model, first = new_black_box(), new_black_box()
    score_slices(model, None, slices, "click", 0, 1)
    score_slices(first, None, slices[:3], "click", 0, 1)
    assert first.queries[0][1] == model.queries[0][1][:3]


def test_scores_are_in_order_and_counted(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    dim, bright = dim_slices(1)["patient 0"][:2]
    bright = LabelledSlice(
        "b", (bright.target[..., None] * np.full(3, 255)).astype(np.uint8), bright.target, bright.window
    )
    black_box = new_black_box()
    scores = score_slices(black_box, None, [dim, bright, dim], "click", 0, 2)
    assert scores.tolist() == [[0, 0], [1, 1], [0, 0]]
    assert black_box.images_queried == 6


@pytest.mark.parametrize("adapted", [False, True])
def test_model_with_its_own_preprocessing_is_scored_without_padding(
    new_black_box: Callable[..., Any], dim_slices: Slices, adapted: bool
) -> None:
    slices = [replace(piece, size=(32, 24)) for piece in dim_slices(1)["patient 0"]]
    black_box = new_black_box(preprocessing="sam")
    score_slices(black_box, _brighter() if adapted else None, slices, "click", 3, 1)
    assert [images.shape for images, _ in black_box.queries] == [(4, 32, 24, 3)]
    segment = build_segment_function(black_box, _brighter() if adapted else None, slices[0].image, (32, 24))
    assert segment([Prompt(((9.0, 9.0),))]).shape == (1, 32, 32)
    assert {images.shape[1:3] for images, _ in black_box.queries} == {(32, 24)}


def test_head_corrects_the_masks(
    new_black_box: Callable[..., Any], dim_slices: Slices, lively_head: OutputHead
) -> None:
    slices = dim_slices(5)["patient 1"] * 5
    black_box, headed = new_black_box(), Adapter(_brighter().visual_prompt, lively_head)
    result = score_slices(black_box, headed, slices, "click", 3, 1)
    prompts = [prompt for _, batch in black_box.queries for prompt in batch]
    pixels = np.stack([piece.image for piece in slices])
    brighter = _brighter()
    answers = new_black_box().segment(brighter.transform_images(brighter.crop(pixels, prompts)), prompts)
    batches = (slice(0, 16), slice(16, None))
    corrected = [headed.refine_masks(headed.crop(pixels[part], prompts[part]), answers[part]) for part in batches]
    expected = [
        dice(probability > 0.5, s.target) for probability, s in zip(np.concatenate(corrected), slices, strict=True)
    ]
    assert result[:, 0].tolist() == expected
    assert not np.array_equal(result, score_slices(new_black_box(), _brighter(), slices, "click", 3, 1))


def test_images_are_not_changed_in_place(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    slices = dim_slices(1)["patient 0"]
    before = [piece.image.copy() for piece in slices]
    score_slices(new_black_box(), _brighter(), slices, "click", 0, 1)
    for piece, image in zip(slices, before, strict=True):
        np.testing.assert_array_equal(piece.image, image)
