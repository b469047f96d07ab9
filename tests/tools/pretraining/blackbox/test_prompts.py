from __future__ import annotations

import pytest
import torch
from scipy import ndimage

from tools.pretraining.blackbox.prompts import MIN_AREA, Targets, draw_targets
from tools.pretraining.blackbox.scenes import Scenes, draw_scenes

SEEDS = range(12)


def _draw(seed: int, each: int = 3, size: int = 64) -> tuple[Scenes, Targets]:
    generator = torch.Generator().manual_seed(seed)
    scenes = draw_scenes(generator, 3, size)
    return scenes, draw_targets(generator, scenes, each)


@pytest.mark.parametrize("seed", SEEDS)
def test_shapes_of_targets(seed: int) -> None:
    _, targets = _draw(seed)
    count, clicks = targets.signs.shape
    assert targets.masks.shape == (count, 64, 64)
    assert targets.points.shape == (count, clicks, 2)
    assert targets.boxes.shape == (count, 4)
    assert targets.image.shape == (count,)
    assert set(targets.masks.unique().tolist()) <= {0.0, 1.0}
    assert set(targets.signs.unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert 1 <= clicks <= 4
    per_picture = targets.image.bincount(minlength=3)
    assert int(per_picture.min()) >= 1
    assert int(per_picture.max()) <= 3


@pytest.mark.parametrize("seed", SEEDS)
def test_targets_are_pieces_of_one_object(seed: int) -> None:
    scenes, targets = _draw(seed)
    for image, mask in zip(targets.image, targets.masks, strict=True):
        assert float(mask.sum()) >= 64 * 64 * MIN_AREA
        assert len(scenes.regions[image][mask > 0].unique()) == 1
        if int(scenes.regions[image][mask > 0][0]) > 0:
            assert ndimage.label(mask.numpy())[1] == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_clicks_match_their_sign(seed: int) -> None:
    _, targets = _draw(seed)
    assert bool((targets.signs[:, 0] == 1).all())
    for mask, points, signs in zip(targets.masks, targets.points.long(), targets.signs, strict=True):
        for (x, y), sign in zip(points.tolist(), signs.tolist(), strict=True):
            if sign == 1:
                assert float(mask[y, x]) == 1
            elif sign == 0 and float(mask.min()) == 0:
                assert float(mask[y, x]) == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_boxes_cover_their_masks_within_a_tenth(seed: int) -> None:
    _, targets = _draw(seed)
    for mask, box in zip(targets.masks, targets.boxes, strict=True):
        rows, columns = mask.nonzero().T
        tight = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        box_size = (tight[2:] - tight[:2]).repeat(2)
        assert bool(((box - tight).abs() <= 0.1 * box_size + 1e-3).all())
        assert float(box.min()) >= 0
        assert float(box.max()) <= 64


def test_batches_have_one_or_several_clicks() -> None:
    clicks = {_draw(seed)[1].signs.shape[1] for seed in range(20)}
    assert 1 in clicks
    assert max(clicks) > 1


def test_targets_are_fixed_by_the_seed() -> None:
    for seed in range(3):
        first, same = _draw(seed)[1], _draw(seed)[1]
        for name in ("image", "masks", "points", "signs", "boxes"):
            assert torch.equal(getattr(first, name), getattr(same, name))


def test_target_without_objects_is_the_background() -> None:
    scenes = Scenes(torch.zeros(1, 3, 64, 64), torch.zeros((1, 64, 64), dtype=torch.long))
    targets = draw_targets(torch.Generator().manual_seed(0), scenes, 3)
    assert targets.masks.shape == (1, 64, 64)
    assert float(targets.masks.min()) == 1
