"""Prompts that are drawn in volumes."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK

from baps.errors import InputError
from baps.prompts.simulated_volumes import draw_volume_correction, draw_volume_prompts
from baps.prompts.volume_prompts import VolumeBox, VolumePoint

SPACING = (0.8, 0.8, 3.0)


@pytest.fixture
def organ() -> np.ndarray:
    """A large ball and, apart, a small one."""
    x, y, z = np.meshgrid(*map(np.arange, (50, 50, 16)), indexing="ij")
    large = ((x - 20) ** 2 + (y - 22) ** 2) * 0.64 + ((z - 8) ** 2) * 9 < 12**2
    return large | (((x - 44) ** 2 + (y - 44) ** 2 + (z - 8) ** 2) < 9)


def depths(mask: np.ndarray) -> np.ndarray:
    """Distances to the outside by SimpleITK, mm."""
    image = SimpleITK.GetImageFromArray(mask.astype(np.uint8).transpose())
    image.SetSpacing(SPACING)
    outside = SimpleITK.SignedMaurerDistanceMap(
        image, insideIsPositive=True, squaredDistance=False, useImageSpacing=True
    )
    return SimpleITK.GetArrayFromImage(outside).transpose()


def test_clicks_lie_well_inside_the_largest_piece(organ: np.ndarray) -> None:
    clicks = draw_volume_prompts(organ, SPACING, "click", 40, np.random.default_rng(0))
    deep = depths(organ)
    assert all(isinstance(one, VolumePoint) and one.include for one in clicks)
    values = [deep[one.voxel] for one in clicks if isinstance(one, VolumePoint)]
    assert min(values) >= deep[:35, :35].max() / 2 - max(SPACING)  # Both measure to within a voxel.
    assert len({one.voxel for one in clicks if isinstance(one, VolumePoint)}) > 10


def test_boxes_are_around_all_pieces_with_small_errors(organ: np.ndarray) -> None:
    boxes = [
        b for b in draw_volume_prompts(organ, SPACING, "box", 60, np.random.default_rng(0)) if isinstance(b, VolumeBox)
    ]
    where = np.argwhere(organ)
    low, high = where.min(0), where.max(0) + 1
    errors = np.array([[*(b.low - low), *(b.high - high)] for b in boxes]) / np.tile(high - low, 2)
    assert len(boxes) == 60
    assert 0.02 < errors.std() < 0.08
    assert np.abs(errors).max() <= 0.2
    assert all(0 <= a < b <= size for one in boxes for a, b, size in zip(one.low, one.high, organ.shape, strict=True))


def test_the_same_seed_draws_the_same(organ: np.ndarray) -> None:
    assert draw_volume_prompts(organ, SPACING, "click", 3, np.random.default_rng(5)) == draw_volume_prompts(
        organ, SPACING, "click", 3, np.random.default_rng(5)
    )


def test_a_correction_lies_in_the_largest_error(organ: np.ndarray) -> None:
    random = np.random.default_rng(0)
    missed = draw_volume_correction(np.zeros_like(organ), organ, SPACING, random)
    assert missed is not None
    assert missed.include
    assert organ[missed.voxel]
    leaked = organ.copy()
    leaked[:, :, 12:] = True
    false = draw_volume_correction(leaked, organ, SPACING, random)
    assert false is not None
    assert not false.include
    assert leaked[false.voxel] and not organ[false.voxel]
    assert draw_volume_correction(organ, organ, SPACING, random) is None


def test_an_empty_mask_and_an_unknown_kind(organ: np.ndarray) -> None:
    with pytest.raises(InputError, match="empty mask"):
        draw_volume_prompts(np.zeros_like(organ), SPACING, "click", 1, np.random.default_rng(0))
    with pytest.raises(InputError, match="no prompt named"):
        draw_volume_prompts(organ, SPACING, "lasso", 1, np.random.default_rng(0))
