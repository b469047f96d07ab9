from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baps.adapters.visual_prompt import ImageStatistics, image_statistics, to_tensor
from baps.evaluation.slices import LabelledSlice
from baps.prompts import Prompt
from baps.prompts.simulated import draw_prompt
from baps.training.batches import Batches

Slices = Callable[..., dict[str, list[LabelledSlice]]]


class _CountingEncoder(ImageStatistics):
    """``images_encoded`` counts the images whose features were worked out."""

    images_encoded = 0

    def features(self, images: torch.Tensor) -> torch.Tensor:
        self.images_encoded += len(images)
        return super().features(images)


def _pieces(dim_slices: Slices, per_patient: int = 4) -> list[LabelledSlice]:
    return [piece for pieces in dim_slices(3, per_patient=per_patient).values() for piece in pieces]


def test_batch_contains_its_slices(dim_slices: Slices) -> None:
    slices = _pieces(dim_slices)
    rows, prompts = [7, 0, 7], [Prompt(((float(n), 3.0),)) for n in range(3)]
    batch = Batches(slices, ImageStatistics()).build(rows, prompts)
    images = np.stack([slices[row].image for row in rows])
    assert torch.equal(batch.images, to_tensor(images))
    assert torch.equal(batch.target, torch.from_numpy(np.stack([slices[row].target for row in rows])).float())
    torch.testing.assert_close(batch.features, image_statistics(to_tensor(images)))
    assert batch.prompts == prompts


def test_features_are_computed_once_and_lazily(dim_slices: Slices) -> None:
    encoder = _CountingEncoder()
    batches = Batches(_pieces(dim_slices), encoder)
    random = np.random.default_rng(0)
    first = batches.draw([2, 5, 2], "click", 0.5, random)
    assert encoder.images_encoded == 2
    again = batches.draw([5, 3], "box", 0.5, random)
    assert encoder.images_encoded == 3
    assert torch.equal(first.features[1], again.features[0])
    assert torch.equal(first.features[0], first.features[2])


@pytest.mark.parametrize("kind", ["click", "box"])
def test_prompts_are_drawn_from_the_masks_in_order(dim_slices: Slices, kind: str) -> None:
    slices = _pieces(dim_slices)
    batches = Batches(slices, ImageStatistics())
    result = batches.draw([1, 4, 1], kind, 0, np.random.default_rng(3)).prompts
    random = np.random.default_rng(3)
    random.random(3)  # None of them has corrections.
    assert result == [draw_prompt(slices[row].target, kind, random) for row in (1, 4, 1)]
    assert result != batches.draw([1, 4, 1], kind, 0, np.random.default_rng(4)).prompts


@pytest.mark.parametrize("kind", ["click", "box"])
@pytest.mark.parametrize(("share", "minimum", "maximum"), [(0.0, 0, 0), (0.5, 40, 80), (1.0, 110, 120)])
def test_fraction_of_the_prompts_has_corrections(
    dim_slices: Slices, kind: str, share: float, minimum: int, maximum: int
) -> None:
    batches = Batches(_pieces(dim_slices), ImageStatistics())
    prompts = batches.draw([1, 4, 7] * 40, kind, share, np.random.default_rng(0)).prompts
    corrected = sum(len(prompt.positive) + len(prompt.negative) > (kind == "click") for prompt in prompts)
    assert minimum <= corrected <= maximum


@given(st.integers(1, 12), st.integers(0, 60), st.integers(0, 9))
def test_every_row_is_used_once_per_epoch(dim_slices: Slices, slices: int, count: int, seed: int) -> None:
    batches = Batches(_pieces(dim_slices)[:slices], ImageStatistics())
    rows = batches.sample_rows(count, np.random.default_rng(seed))
    assert len(rows) == count
    for start in range(0, count, slices):
        turn = rows[start : start + slices]
        assert len(set(turn)) == len(turn)
        assert set(turn) <= set(range(slices))
    assert rows == batches.sample_rows(count, np.random.default_rng(seed))


def test_longer_order_starts_like_a_shorter_one(dim_slices: Slices) -> None:
    batches = Batches(_pieces(dim_slices), ImageStatistics())
    longer, shorter = (batches.sample_rows(count, np.random.default_rng(1)) for count in (50, 20))
    assert longer[:20] == shorter


def test_slices_are_not_changed(dim_slices: Slices) -> None:
    piece = _pieces(dim_slices)[0]
    copy = replace(piece, image=piece.image.copy(), target=piece.target.copy())
    batch = Batches([piece], ImageStatistics()).build([0], [Prompt(((1.0, 1.0),))])
    batch.images.zero_()
    batch.target.zero_()
    np.testing.assert_array_equal(piece.image, copy.image)
    np.testing.assert_array_equal(piece.target, copy.target)
