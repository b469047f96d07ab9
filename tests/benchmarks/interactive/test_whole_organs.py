from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from baps.imaging.metrics import dice
from baps.inference.requests.click import OrganClicks
from baps.prompts import Prompt
from benchmarks.interactive.whole_organs import (
    COUNTS,
    ORGANS,
    Run,
    click_where_worst,
    interpolate,
    spread_slices,
    table,
)

SHAPE = (40, 40, 30)


def ball() -> NDArray[np.bool_]:
    i, j, k = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    return (i - 20) ** 2 + (j - 18) ** 2 + (k - 15) ** 2 < 144


@pytest.mark.parametrize("count", COUNTS)
def test_spread_slices_include_the_largest(count: int) -> None:
    areas = ball().sum((0, 1))
    indices = spread_slices(areas, count)
    assert len(indices) == count
    assert int(areas.argmax()) in indices
    assert all(areas[index] >= 0.1 * areas.max() for index in indices)
    assert indices == sorted(set(indices))
    if count > 2:
        assert (indices[0] <= 8, indices[-1] >= 22) == (True, True)


def test_next_click_is_where_the_mask_is_worst() -> None:
    organ, random = ball(), np.random.default_rng(0)
    start = OrganClicks("", {15: Prompt(((20.0, 18.0),))}, {}, 0, SHAPE[2] - 1)
    mask = organ.copy()
    mask[..., 20] = False
    clicks = click_where_worst(start, mask, organ, random)
    assert list(clicks.prompts) == [15, 20]
    ((x, y),) = clicks.prompts[20].positive
    assert organ[int(x), int(y), 20]
    mask = organ.copy()
    mask[:, 18:, 15] = False  # On a clicked slice: a correction.
    clicks = click_where_worst(start, mask, organ, random)
    assert list(clicks.prompts) == [15]
    assert len(clicks.prompts[15].positive) == 2
    mask = organ.copy()
    mask[..., 29] = np.pad(np.ones((20, 20), bool), 10)  # Outside the organ: a background click.
    clicks = click_where_worst(start, mask, organ, random)
    assert clicks.prompts == start.prompts
    assert list(clicks.background) == [29]


def test_interpolated_shapes_lie_between_clicked_slices() -> None:
    organ = ball()
    masks = {index: organ[..., index].T for index in (8, 15, 22)}
    interpolated = interpolate(masks, SHAPE)
    assert np.flatnonzero(interpolated.any((0, 1))).tolist() == list(range(8, 23))
    assert dice(interpolated[..., 8:23], organ[..., 8:23]) > 0.93
    small, large = np.zeros((2, 40, 40), bool)
    small[15:25, 15:25], large[11:29, 11:29] = True, True
    middle = interpolate({0: small, 2: large}, SHAPE)[..., 1]
    assert small.sum() < middle.sum() < large.sum()
    assert interpolate({3: small}, SHAPE).any((0, 1)).nonzero()[0].tolist() == [3]


def test_table_has_means_and_standard_deviations_over_patients() -> None:
    runs = [
        Run(ORGANS[0], patient, True, order, 2, value, 0.3, 0.1, 50, 2.0)
        for order, values in (("spread", (0.8, 0.6)), ("worst", (0.9, 0.9)))
        for patient, value in zip("ab", values, strict=True)
    ]
    _, _, line = table(runs)
    cells = [cell.strip() for cell in line.strip("| ").split("|")]
    assert cells[:4] == [ORGANS[0], "2", "adapted", "2"]
    assert cells[4:] == ["0.700 ± 0.100", "0.300", "0.100", "0.900 ± 0.000", "50", "2.0"]
