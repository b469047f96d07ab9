from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from baps.evaluation.surface_distances import surface_distances

SPACING = np.array([1.0, 2.0, 5.0])


def box(*ranges: tuple[int, int], shape: tuple[int, int, int] = (24, 20, 16)) -> NDArray[np.bool_]:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*bounds) for bounds in ranges)] = True
    return mask


@pytest.mark.parametrize(("axis", "steps"), [(0, 3), (1, 4), (2, 2)])
def test_distance_of_parallel_planes(axis: int, steps: int) -> None:
    """All points have the same distance to the other plane."""
    shape = (12, 12, 12)
    first, second = np.zeros(shape, bool), np.zeros(shape, bool)
    first[tuple(4 if n == axis else slice(None) for n in range(3))] = True
    second[tuple(4 + steps if n == axis else slice(None) for n in range(3))] = True
    apart = steps * SPACING[axis]
    assert surface_distances(first, second, SPACING) == pytest.approx((apart, apart))


@pytest.mark.parametrize(("axis", "steps"), [(0, 2), (1, 1), (2, 1)])
def test_distance_of_a_shifted_box(axis: int, steps: int) -> None:
    """The faces across the shift are displaced by it; the others coincide except where they stick out."""
    ranges = [(4, 16), (4, 14), (4, 12)]
    moved = [(a + steps * (n == axis), b + steps * (n == axis)) for n, (a, b) in enumerate(ranges)]
    shift = steps * SPACING[axis]
    hd95, surface = surface_distances(box(*ranges), box(*moved), SPACING)
    assert hd95 == pytest.approx(shift)
    assert 0 < surface < shift
    assert surface_distances(box(*moved), box(*ranges), SPACING) == pytest.approx((hd95, surface))


def test_mean_is_over_all_points_of_both_surfaces() -> None:
    """One voxel against a row of three that starts there: 0 mm from the one; 0, 2 and 4 mm from the three."""
    hd95, surface = surface_distances(box((4, 5), (4, 5), (4, 5)), box((4, 5), (4, 7), (4, 5)), SPACING)
    assert surface == pytest.approx(6 / 4)
    assert hd95 == pytest.approx(0.9 * 4 + 0.1 * 2)


def test_distance_of_a_mask_to_itself_is_zero() -> None:
    full_mask = np.ones((6, 6, 6), bool)
    assert surface_distances(full_mask, full_mask, SPACING) == (0, 0)


def test_distance_of_empty_masks_is_infinite() -> None:
    some, none = box((4, 6), (4, 6), (4, 6)), np.zeros((24, 20, 16), bool)
    assert surface_distances(none, none, SPACING) == (0, 0)
    assert surface_distances(some, none, SPACING) == surface_distances(none, some, SPACING) == (math.inf, math.inf)
