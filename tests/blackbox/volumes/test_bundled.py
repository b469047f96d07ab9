"""The bundled volumetric model: where it looks, and how large objects may be."""

from __future__ import annotations

import json
import shutil
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from baps.blackbox.volumes.bundled import BUNDLED_VOLUME_WEIGHTS, BundledVolumeBlackBox, load_bundled_volume_model
from baps.errors import InputError
from baps.imaging.metrics import dice
from baps.prompts.volume_prompts import VolumeBox, VolumePoint, VolumeRegion

SHAPE, SPACING = (96, 90, 40), (1.0, 1.2, 3.0)


@pytest.fixture(scope="module")
def black_box() -> BundledVolumeBlackBox:
    return load_bundled_volume_model()


def ball(radius: float, centre: tuple[int, int, int] = (44, 40, 20)) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A bright ball of a radius in mm, in noise, and its mask."""
    grid = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    squares = sum((d * (g - c)) ** 2 for g, c, d in zip(grid, centre, SPACING, strict=True))
    mask = squares < radius**2
    return (np.random.default_rng(0).normal(30, 8, SHAPE) + 100 * mask).astype(np.float32), mask


def test_a_box_and_a_lasso_give_the_ball(black_box: BundledVolumeBlackBox) -> None:
    for radius in (12.0, 24.0):
        voxels, mask = ball(radius)
        where = np.argwhere(mask)
        low, high = where.min(0), where.max(0) + 1
        box = VolumeBox(tuple(map(int, low)), tuple(map(int, high)), True)  # type: ignore[arg-type]
        assert dice(black_box.predict(voxels, SPACING, [box]) > 0.5, mask) > 0.85
        middle = np.zeros(SHAPE, np.uint8)
        middle[..., 20] = mask[..., 20]
        lasso = VolumeRegion.of(middle, (0, 0, 0), True, True)
        assert dice(black_box.predict(voxels, SPACING, [lasso]) > 0.5, mask) > 0.5


def test_a_click_gives_balls_of_different_sizes(black_box: BundledVolumeBlackBox) -> None:
    for radius in (12.0, 20.0, 30.0):
        voxels, mask = ball(radius)
        assert dice(black_box.predict(voxels, SPACING, [VolumePoint((44, 40, 20), True)]) > 0.5, mask) > 0.7


def test_a_mask_with_a_click_where_it_is_wrong_becomes_better(black_box: BundledVolumeBlackBox) -> None:
    voxels, mask = ball(24.0)
    half = mask.copy()
    half[44:] = False
    corrected = black_box.predict(voxels, SPACING, [VolumePoint((56, 40, 20), True)], half) > 0.5
    assert dice(corrected, mask) > dice(half, mask) + 0.03


def test_clicks_outside_a_mask_may_add_to_it_and_take_nothing_away(
    black_box: BundledVolumeBlackBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    voxels, mask = ball(24.0)
    small = ball(8.0)[1]
    inside, outside = VolumePoint((44, 40, 20), True), VolumePoint((58, 40, 20), True)
    scribble = VolumeRegion.of(np.ones((3, 1, 1), np.uint8), outside.voxel, False, True)
    assert mask[outside.voxel]
    assert not small[outside.voxel]
    both = {prompt: black_box.predict(voxels, SPACING, [inside, prompt], small) for prompt in (inside, outside)}
    scribbled = black_box.predict(voxels, SPACING, [inside, scribble], small)
    monkeypatch.setattr("baps.blackbox.volumes.bundled._something_is_missing", lambda *_: False)
    kept = {prompt: black_box.predict(voxels, SPACING, [inside, prompt], small) for prompt in (inside, outside)}
    assert np.array_equal(both[inside], kept[inside])
    assert (both[outside] >= kept[outside]).all()
    assert dice(both[outside] > 0.5, mask) > dice(kept[outside] > 0.5, mask) + 0.1
    assert (scribbled >= black_box.predict(voxels, SPACING, [inside, scribble], small)).all()
    beside = VolumePoint((80, 80, 35), False)
    before = black_box.predict(voxels, SPACING, [inside, beside], small)
    monkeypatch.undo()
    assert np.array_equal(black_box.predict(voxels, SPACING, [inside, beside], small), before)


@pytest.mark.parametrize("order", permutations(range(3)))
def test_any_order_of_axes(black_box: BundledVolumeBlackBox, order: tuple[int, int, int]) -> None:
    voxels, mask = ball(20.0, (30, 50, 16))
    spacing = tuple(SPACING[axis] for axis in order)
    point = tuple((30, 50, 16)[axis] for axis in order)
    answer = black_box.predict(voxels.transpose(order), spacing, [VolumePoint(point, True)])  # type: ignore[arg-type]
    assert dice(answer > 0.5, mask.transpose(order)) > 0.7


def test_an_object_at_the_border_and_a_flat_volume(black_box: BundledVolumeBlackBox) -> None:
    voxels, mask = ball(20.0, (2, 3, 1))
    assert dice(black_box.predict(voxels, SPACING, [VolumePoint((2, 3, 1), True)]) > 0.5, mask) > 0.4
    flat = black_box.predict(voxels[..., :1], SPACING, [VolumePoint((2, 3, 0), True)])
    assert flat.shape == (96, 90, 1)


def test_weights_that_cannot_be_used(tmp_path: Path) -> None:
    copy = tmp_path / "bundled3d.safetensors"
    shutil.copy(BUNDLED_VOLUME_WEIGHTS, copy)
    with pytest.raises(InputError, match="with its record"):
        load_bundled_volume_model(copy)
    copy.with_suffix(".json").write_text(json.dumps({}))
    assert load_bundled_volume_model(copy).capabilities.name == "bundled3d"
    with pytest.raises(InputError, match="SHA-256"):
        load_bundled_volume_model(copy, "0" * 64)
    shutil.copy(BUNDLED_VOLUME_WEIGHTS.with_name("bundled.safetensors"), copy)
    with pytest.raises(InputError, match="does not hold the bundled volumetric model"):
        load_bundled_volume_model(copy)


def test_the_file_is_small() -> None:
    assert BUNDLED_VOLUME_WEIGHTS.stat().st_size < 20 << 20
