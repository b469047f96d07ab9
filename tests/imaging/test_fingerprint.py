from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from baps.imaging.fingerprint import Fingerprint, Orientation, PlaneSums

ORIENTATIONS = [
    Orientation(order, flipped)  # type: ignore[arg-type]
    for order in itertools.permutations(range(3))
    for flipped in itertools.product((False, True), repeat=3)
]


def image(shape: tuple[int, ...] = (6, 6, 6), seed: int = 0) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(-1000, 2000, shape).astype(np.int16)


@pytest.mark.parametrize("shape", [(6, 6, 6), (5, 7, 5), (4, 5, 6), (5, 4, 6, 3)])
def test_each_of_48_orientations_is_recognised_and_undone(shape: tuple[int, ...]) -> None:
    stored = image(shape)
    mask = np.random.default_rng(1).random(shape[:3]) < 0.3
    for orientation in ORIENTATIONS:
        sent = np.ascontiguousarray(orientation.apply(stored))
        (found,) = Fingerprint.of(sent).orientations(stored)
        assert found == orientation
        assert np.array_equal(found.undo(orientation.apply(mask)), mask)


def test_neither_the_type_nor_the_memory_layout_matters() -> None:
    stored = image()
    expected = Fingerprint.of(stored)
    for dtype in ("int16", "int32", "int64", "float32", "float64", ">i2"):
        for layout in (np.ascontiguousarray, np.asfortranarray):
            assert Fingerprint.of(layout(stored.astype(dtype))) == expected
    assert Fingerprint.of(stored[::-1][::-1].transpose(2, 1, 0).copy().transpose(2, 1, 0)) == expected
    assert Fingerprint.of(np.full((2, 2, 2), -0.0)) == Fingerprint.of(np.zeros((2, 2, 2), np.uint8))


def test_values_that_a_viewer_rounded_to_single_precision_are_recognised() -> None:
    stored = image() * 0.1
    assert len(Fingerprint.of(stored.astype(np.float32)).orientations(stored)) == 1


def test_one_other_voxel_or_two_exchanged_ones_make_another_image() -> None:
    stored = image()
    changed, exchanged = stored.copy(), stored.copy()
    changed[1, 2, 3] += 1
    exchanged[0, :2], exchanged[1, :2] = stored[1, :2], stored[0, :2]
    for other in (changed, exchanged, stored[:, :, :5], image(seed=1)):
        assert Fingerprint.of(stored).orientations(other) == []


def test_images_with_equal_sums_of_planes_are_told_apart_by_their_values() -> None:
    stored = np.zeros((4, 4, 4), np.int16)
    stored[0, 0, 0] = stored[1, 1, 0] = stored[0, 2, 1] = 5
    other = np.zeros_like(stored)
    other[0, 1, 0] = other[1, 0, 0] = other[0, 2, 1] = 5
    assert PlaneSums.of(stored) == PlaneSums.of(other)
    assert Fingerprint.of(stored).orientations(other) == []
    assert len(Fingerprint.of(stored).orientations(stored)) == 1


def test_a_symmetric_image_has_several_orientations() -> None:
    stored = image((5, 5, 3))
    mirrored = np.concatenate([stored, stored[::-1]])
    assert len(Fingerprint.of(mirrored).orientations(mirrored)) == 2
    assert len(Fingerprint.of(np.zeros((4, 4, 4), np.uint8)).orientations(np.zeros((4, 4, 4), np.int16))) == 2


@pytest.mark.parametrize("shape", [(5, 6, 1), (5, 1, 5), (1, 1, 5), (1, 1, 1)])
def test_an_axis_with_one_voxel_has_one_direction(shape: tuple[int, int, int]) -> None:
    stored = image(shape)
    assert len(Fingerprint.of(stored).orientations(stored)) == 1


def test_the_fingerprint_holds_no_value_of_the_image() -> None:
    print_of = Fingerprint.of(image())
    for text in (print_of.sha256, *print_of.axes):
        assert len(bytes.fromhex(text)) == 32
    assert print_of.shape == (6, 6, 6)
