from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from baps.blackbox import Capabilities
from baps.imaging.metrics import dice
from baps.inference.propagation import Step, VolumeSlices, deepest_point, interpolate_shape, prompt_from_mask, propagate

SIDE, COUNT = 40, 31
CLICKS = Capabilities("clicks", "", True, True, True, False, 1, SIDE)
BOXES = Capabilities("boxes", "", False, False, True, False, 1, SIDE)


def ellipsoid(half: float = 11, radius: float = 12) -> NDArray[np.bool_]:
    """Make the slices (COUNT, SIDE, SIDE) of an ellipsoid around the centre."""
    k, y, x = np.mgrid[:COUNT, :SIDE, :SIDE]
    ball: NDArray[np.bool_] = ((k - 15) / half) ** 2 + ((y - 20) / radius) ** 2 + ((x - 18) / radius) ** 2 < 1
    return ball


class Model:
    """Returns the object at the deepest point of the last mask; on other tissue, that tissue.

    ``queries`` keeps (start, end, index) of every answer.
    """

    def __init__(self, organ: NDArray[np.bool_], spilled: float = 0.0) -> None:
        self.organ, self.spilled = organ, spilled
        self.queries: list[tuple[int, int, int]] = []

    def start_step(self, start: int, end: int) -> Step:
        def step(index: int, last: NDArray[np.bool_]) -> NDArray[np.float32]:
            self.queries.append((start, end, index))
            x, y = deepest_point(last)
            inside = self.organ[index][round(y), round(x)]
            answer = self.organ[index] if inside else np.full((SIDE, SIDE), self.spilled) > 0.5
            return answer.astype(np.float32)

        return step


def slices(organ: NDArray[np.bool_], first: int = 0, last: int = COUNT - 1, **settings: object) -> VolumeSlices:
    return VolumeSlices(first, last, lambda index: np.where(organ[index], 160, 60).astype(np.float32), **settings)  # type: ignore[arg-type]


def clicked(organ: NDArray[np.bool_], *indices: int) -> dict[int, NDArray[np.bool_]]:
    return {index: organ[index] for index in indices}


@pytest.mark.parametrize("spilled", [0.0, 1.0], ids=["vanishes", "spills"])
@pytest.mark.parametrize("indices", [(15,), (8,), (6, 22), (10, 15, 19)])
def test_ellipsoid_is_found_to_its_ends_only(indices: tuple[int, ...], spilled: float) -> None:
    organ = ellipsoid()
    result = propagate(clicked(organ, *indices), Model(organ, spilled).start_step, slices(organ))
    assert list(result.masks) == np.flatnonzero(organ.any((1, 2))).tolist()
    assert result.stopped == ()
    for index, mask in result.masks.items():
        np.testing.assert_array_equal(mask, organ[index])


def test_slices_are_queried_once_per_direction_near_the_organ() -> None:
    organ = ellipsoid()
    model = Model(organ)
    propagate(clicked(organ, 15), model.start_step, slices(organ))
    assert sorted(index for _, _, index in model.queries) == [*range(4, 15), *range(16, 27)]
    model.queries.clear()
    propagate(clicked(organ, 10, 20), model.start_step, slices(organ))
    between = sorted(index for _, _, index in model.queries if 10 < index < 20)
    assert between == sorted([*range(11, 20)] * 2)  # From both sides.
    assert not {10, 20} & {index for _, _, index in model.queries}


def test_propagation_stays_within_the_allowed_slices() -> None:
    tube = np.repeat(ellipsoid()[15][None], COUNT, axis=0)
    assert list(propagate(clicked(tube, 3), Model(tube).start_step, slices(tube)).masks) == list(range(COUNT))
    assert list(propagate(clicked(tube, 9), Model(tube).start_step, slices(tube, 7, 12)).masks) == list(range(7, 13))
    assert list(propagate(clicked(tube, 9), Model(tube).start_step, slices(tube, 9, 9)).masks) == [9]


def test_other_tissue_ends_the_propagation() -> None:
    """Another organ with the same outline continues where this one ends."""
    tube = np.repeat(ellipsoid()[15][None], COUNT, axis=0)
    grey = VolumeSlices(0, COUNT - 1, lambda index: np.full((SIDE, SIDE), 160.0 if index <= 20 else 90.0, np.float32))
    assert list(propagate(clicked(tube, 15), Model(tube).start_step, grey).masks) == list(range(21))


def test_jump_to_another_position_ends_the_propagation() -> None:
    organ = ellipsoid(half=40)
    moved = np.where(np.arange(COUNT)[:, None, None] > 20, np.roll(organ, 20, axis=2), organ)

    def start_step(start: int, end: int) -> Step:
        return lambda index, last: moved[index].astype(np.float32)

    bright = VolumeSlices(0, COUNT - 1, lambda index: np.full((SIDE, SIDE), 160, np.float32))
    assert max(propagate(clicked(organ, 15), start_step, bright).masks) == 20


def test_nearer_clicked_slice_has_more_weight() -> None:
    """From one side the whole slice is the organ; from the other only the centre."""
    large, small = np.zeros((2, SIDE, SIDE), bool)
    large[10:30, 10:30] = True
    small[12:28, 12:28] = True

    def start_step(start: int, end: int) -> Step:
        return lambda index, last: (large if start == 5 else small).astype(np.float32)

    bright = VolumeSlices(5, 15, lambda index: np.full((SIDE, SIDE), 160, np.float32))
    result = propagate({5: large, 15: small}, start_step, bright)
    for index in range(6, 10):
        np.testing.assert_array_equal(result.masks[index], large)
    for index in range(11, 15):
        np.testing.assert_array_equal(result.masks[index], small)
    np.testing.assert_array_equal(result.masks[5], large)
    np.testing.assert_array_equal(result.masks[15], small)


def test_only_the_other_side_counts_where_one_has_ended() -> None:
    organ = ellipsoid(half=40)
    model = Model(organ)

    def start_step(start: int, end: int) -> Step:
        step = model.start_step(start, end)
        return lambda index, last: np.zeros((SIDE, SIDE), np.float32) if start == 5 else step(index, last)

    result = propagate(clicked(organ, 5, 25), start_step, slices(organ, 5, 25))
    assert list(result.masks) == list(range(5, 26))


def test_shape_is_interpolated_where_both_sides_ended() -> None:
    organ = ellipsoid(half=40)

    def start_step(start: int, end: int) -> Step:
        return lambda index, last: np.zeros((SIDE, SIDE), np.float32)

    result = propagate(clicked(organ, 5, 25), start_step, slices(organ))
    assert list(result.masks) == list(range(5, 26))
    assert result.interpolated == tuple(range(6, 25))
    assert min(dice(result.masks[index], organ[index]) for index in result.masks) > 0.9
    denied = slices(organ, background={9: ((18.0, 20.0),), 10: ((1.0, 1.0),)})
    assert list(propagate(clicked(organ, 5, 25), start_step, denied).masks) == [5, 6, 7, 8, *range(10, 26)]
    stopped = propagate(clicked(organ, 5, 25), start_step, slices(organ), should_continue=lambda: False)
    assert (list(stopped.masks), stopped.interpolated) == ([5, 25], ())


def test_interpolated_shape_of_two_discs() -> None:
    y, x = np.mgrid[:SIDE, :SIDE]
    small, middle, large = ((y - 20) ** 2 + (x - 20) ** 2 < radius**2 for radius in (4, 8, 12))
    assert dice(interpolate_shape(small, large, 0.5), middle) > 0.97
    np.testing.assert_array_equal(interpolate_shape(small, large, 0), small)
    np.testing.assert_array_equal(interpolate_shape(small, large, 1), large)
    assert not interpolate_shape(small, np.roll(small, 18, axis=0), 0.5).any()


def test_mask_that_covers_a_background_click_ends_the_propagation() -> None:
    tube = np.repeat(ellipsoid()[15][None], COUNT, axis=0)
    beside = slices(tube, background={20: ((2.0, 2.0),)})
    assert max(propagate(clicked(tube, 15), Model(tube).start_step, beside).masks) == COUNT - 1
    inside = slices(tube, background={20: ((2.0, 2.0), (18.0, 20.0))})
    result = propagate(clicked(tube, 15), Model(tube).start_step, inside)
    assert list(result.masks) == list(range(20))


def test_empty_mask_is_not_propagated() -> None:
    organ = ellipsoid()
    empty = np.zeros((SIDE, SIDE), bool)
    model = Model(organ)
    assert propagate({9: empty}, model.start_step, slices(organ)).masks == {}
    assert not model.queries
    result = propagate({9: empty, 15: organ[15]}, model.start_step, slices(organ))
    assert list(result.masks) == np.flatnonzero(organ.any((1, 2))).tolist()


@pytest.mark.parametrize("answers", [0, 1, 5, 13])
def test_stopped_propagation_returns_masks_around_the_clicks(answers: int) -> None:
    organ = ellipsoid()
    model = Model(organ)
    result = propagate(
        clicked(organ, 15), model.start_step, slices(organ), should_continue=lambda: len(model.queries) < answers
    )
    assert len(model.queries) == answers
    up, down = (answers + 1) // 2, answers // 2
    assert list(result.masks) == list(range(15 - down, 16 + up))
    assert result.stopped == (14 - down, 16 + up)


def test_progress_is_monotonic_and_ends_at_its_total() -> None:
    organ, reports = ellipsoid(), list[tuple[int, int]]()
    propagate(clicked(organ, 12, 18), Model(organ).start_step, slices(organ), progress=lambda *now: reports.append(now))
    dones, totals = [list(numbers) for numbers in zip(*reports, strict=True)]
    assert dones == sorted(dones)
    assert totals == sorted(totals, reverse=True)
    assert totals[0] == 12 + (COUNT - 19) + 2 * 5
    assert dones[-1] == totals[-1] == 8 + 8 + 10


def test_the_deepest_point() -> None:
    mask = np.zeros((20, 30), bool)
    mask[2:4, 2:28] = True
    mask[5:14, 20:29] = True
    assert deepest_point(mask) == (24.0, 9.0)
    assert deepest_point(np.ones((5, 5), bool)) == (2.0, 2.0)


def test_next_slice_is_prompted_with_a_click_or_a_box() -> None:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[10:31, 0:21] = True
    prompt = prompt_from_mask(mask, CLICKS, ((30.0, 30.0),))
    assert (prompt.positive, prompt.negative, prompt.box) == (((10.0, 20.0),), ((30.0, 30.0),), None)
    box = prompt_from_mask(mask, BOXES).box
    assert box is not None
    np.testing.assert_allclose(box, (0, 8.95, 21.05, 31.05))  # The box stays within the slice.


def test_propagated_click_keeps_away_from_a_background_click() -> None:
    mask = np.ones((SIDE, SIDE), bool)
    at = deepest_point(mask)
    ((x, y),) = prompt_from_mask(mask, CLICKS, (at,)).positive
    assert np.hypot(x - at[0], y - at[1]) > 6


def test_mask_of_one_excluded_pixel_still_gives_a_prompt() -> None:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[3, 4] = True
    assert prompt_from_mask(mask, CLICKS, ((4.0, 3.0),)).positive == ((4.0, 3.0),)


def test_directions_alternate() -> None:
    organ = ellipsoid()
    model = Model(organ)
    propagate(clicked(organ, 15), model.start_step, slices(organ), should_continue=lambda: len(model.queries) < 4)
    assert [index for _, _, index in model.queries] == [16, 14, 17, 13]
