from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from baps.prompts import Prompt
from benchmarks.adaptation.wrapped import CropAroundClick, HardMasks


def test_crop_around_click_gives_the_same_mask_and_counts_images(new_black_box: Callable[..., Any]) -> None:
    inner = new_black_box()
    image = np.zeros((32, 32, 3), np.uint8)
    image[8:16, 10:18] = 250
    prompt = Prompt(((13.0, 12.0),))
    expected = inner.segment(image[None], [prompt])[0] > 0.5
    crop = CropAroundClick(inner, 0.75)
    cropped = crop.segment(image[None], [prompt])[0] > 0.5
    assert expected.any()
    assert (cropped != expected).mean() < 0.02
    assert (crop.images_queried, inner.images_queried) == (1, 2)
    images, prompts = inner.queries[-1]
    assert images.shape == (1, 32, 32, 3)
    (x, y) = prompts[0].positive[0]
    assert images[0, round(y), round(x), 0] > 200


def test_hard_masks_are_zero_and_one(new_black_box: Callable[..., Any]) -> None:
    inner = new_black_box()
    images = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    prompts = [Prompt(((9.0, 9.0),))] * 3
    soft, hard = inner.segment(images, prompts), HardMasks(inner).segment(images, prompts)
    assert set(np.unique(hard)) <= {0.0, 1.0}
    np.testing.assert_array_equal(hard > 0.5, soft > 0.5)
