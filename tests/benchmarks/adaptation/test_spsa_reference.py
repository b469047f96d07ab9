from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from baps.adapters.adapter import Adapter
from baps.evaluation.slices import LabelledSlice
from baps.imaging.windowing import Window
from benchmarks.adaptation import spsa_reference
from benchmarks.adaptation.arms import Arena
from benchmarks.adaptation.spsa_reference import (
    ReferenceBatches,
    TruncatingVisualPrompt,
    augment,
    draw_uniform_click,
    spsa_gc_reference,
    spsa_gc_reference_80000,
)


def test_the_untrained_decoder_changes_at_most_a_grey_level_and_truncates(dim_slices: Callable[..., Any]) -> None:
    (piece,) = dim_slices(1, per_patient=1)["patient 0"]
    adapter = Adapter(TruncatingVisualPrompt(seed=0))
    click = draw_uniform_click(piece.target, np.random.default_rng(0))
    found = adapter.transform_images(adapter.crop(piece.image[None], [click]))[0].astype(int)
    assert set(np.unique(found - piece.image)) <= {-1, 0}
    with torch.no_grad():
        adapter.visual_prompt.last.bias.fill_(0.95 / 57)  # type: ignore[union-attr,operator]  # Almost a grey level.
    brighter = adapter.transform_images(adapter.crop(piece.image[None], [click]))[0].astype(int)
    assert set(np.unique(brighter - piece.image)) <= {-1, 0}


def test_clicks_are_uniform_in_the_object() -> None:
    target = np.zeros((8, 8), bool)
    target[2:4, 3:6] = True
    random = np.random.default_rng(0)
    clicks = [draw_uniform_click(target, random).positive[0] for _ in range(600)]
    counts = np.array([clicks.count((float(x), float(y))) for y in (2, 3) for x in (3, 4, 5)])
    assert counts.sum() == 600
    assert counts.min() > 60


def test_augmentation_keeps_the_object_in_the_shown_part() -> None:
    image, target = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), bool)
    target[1:4, 1:4] = True
    image[target], image[20:, :] = 100, 0
    piece = LabelledSlice("patient", image, target, Window(0, 255), (20, 24))
    random, changed = np.random.default_rng(0), []
    for _ in range(40):
        found = augment(piece, random)
        assert found.target.any()
        assert not found.target[20:].any()
        assert not found.target[:, 24:].any()
        assert found.size == piece.size
        values = found.image[found.target]
        assert values.max() <= 200
        changed.append(not np.array_equal(found.image, image))
    assert 0.5 < np.mean(changed) < 1


def test_slices_are_sampled_with_replacement(dim_slices: Callable[..., Any]) -> None:
    batches = ReferenceBatches(dim_slices(1, per_patient=8)["patient 0"], TruncatingVisualPrompt(0).encoder)
    assert len(set(batches.sample_rows(8, np.random.default_rng(0)))) < 8


@pytest.fixture
def new_arena(
    new_black_box: Callable[..., Any], dim_slices: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Arena]:
    """Make an arena for two steps with a checkpoint after each."""
    monkeypatch.setattr(spsa_reference, "_CHECKPOINT_STEPS", 1)

    def make() -> Arena:
        patients = dim_slices(5)
        test = [patients.pop("patient 4")]
        return Arena(new_black_box(), new_black_box(), patients, test, 0, 110)

    return make


def test_validation_counts_in_the_images(new_arena: Callable[[], Arena]) -> None:
    arena = new_arena()
    spsa_gc_reference(arena)
    assert arena.notes["steps"] == 2
    assert arena.notes["training_images"] == 2 * 40
    assert arena.notes["validation_images"] == 3 * 4
    assert arena.black_box.images_queried == 2 * 40 + 3 * 4 <= arena.max_images


def test_the_published_number_of_images_is_of_training_alone(
    new_arena: Callable[[], Arena], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spsa_reference, "_PUBLISHED_STEPS", 3)
    arena = new_arena()
    spsa_gc_reference_80000(arena)
    assert arena.notes["training_images"] == 3 * 40
    assert arena.black_box.images_queried == 3 * 40 + 4 * 4


def test_a_run_is_repeatable(new_arena: Callable[[], Arena]) -> None:
    first, second = new_arena(), new_arena()
    spsa_gc_reference(first)
    spsa_gc_reference(second)
    assert first.curve == second.curve
    assert first.notes == second.notes


def test_the_best_checkpoint_may_be_the_untouched_model(
    new_arena: Callable[[], Arena], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([0.5, 0.6, 0.5])
    monkeypatch.setattr(spsa_reference, "validation_loss", lambda *_: next(losses))
    arena = new_arena()
    assert spsa_gc_reference(arena)[1] is None
    assert arena.notes["checkpoint"] == 0


def test_the_best_checkpoint_is_kept(new_arena: Callable[[], Arena], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    losses = iter([0.5, 0.4, 0.45])

    def loss(_: object, adapter: Adapter | None, *__: object) -> float:
        if adapter is not None:
            seen.append(parameters_to_vector(adapter.visual_prompt.parameters()).detach().clone())
        return next(losses)

    monkeypatch.setattr(spsa_reference, "validation_loss", loss)
    arena = new_arena()
    _, adapter = spsa_gc_reference(arena)
    assert adapter is not None
    assert arena.notes["checkpoint"] == 1
    kept = parameters_to_vector(adapter.visual_prompt.parameters())
    assert torch.equal(kept, seen[0])
    assert not torch.equal(kept, seen[1])
