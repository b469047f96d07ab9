from __future__ import annotations

import numpy as np
import pytest

from baps.imaging.volume import Volume
from baps.imaging.windowing import CT_WINDOW, Window, choose_window


def _volume(values: np.ndarray) -> Volume:
    return Volume(values, np.eye(4))


def test_window_by_hand() -> None:
    levels = Window(-160, 240).apply(np.array([-1000, -160, 40, 240, 3000], np.int16))
    np.testing.assert_allclose(levels, [0, 0, 127.5, 255, 255], atol=1e-4)
    assert levels.dtype == np.float32


def test_small_integer_types_do_not_wrap() -> None:
    levels = Window(10, 250).apply(np.array([0, 10, 130, 250, 255], np.uint8))
    np.testing.assert_allclose(levels, [0, 0, 127.5, 255, 255], atol=1e-4)


def test_the_dictionary_names_the_source() -> None:
    assert Window(1, 2, "ct").to_dict() == {"low": 1, "high": 2, "source": "ct"}
    assert Window(1, 2).source == "given"


def test_ct_is_recognised_by_its_values() -> None:
    random = np.random.default_rng(0)
    voxels = random.normal(40, 30, (20, 20, 20))
    voxels[:5] = -1000
    assert choose_window(_volume(voxels.astype(np.int16))) == Window(*CT_WINDOW, "ct")


def test_mr_gets_percentiles_without_the_background() -> None:
    random = np.random.default_rng(0)
    voxels = np.zeros((30, 30, 30), np.float32)
    voxels[10:20] = random.uniform(300, 900, (10, 30, 30))
    window = choose_window(_volume(voxels))
    assert window.source == "percentiles"
    assert window.low == pytest.approx(303, abs=3)
    assert window.high == pytest.approx(897, abs=3)


def _thorax(*outliers: int) -> Volume:
    voxels = np.full((10, 10, 10), 50, np.int16)
    voxels[:3] = -1000
    voxels[0, 0, : len(outliers)] = outliers
    return _volume(voxels)


@pytest.mark.parametrize("outliers", [(30_000,), (-30_000, -20_000), (-30_000, 30_000)])
def test_values_outside_the_range_of_hounsfield_units_are_not_ct(outliers: tuple[int, ...]) -> None:
    assert choose_window(_thorax(*outliers)).source == "percentiles"


@pytest.mark.parametrize("fill", [-2001, -3024, -30_000])
def test_padding_in_the_corners_of_ct_is_ignored(fill: int) -> None:
    assert choose_window(_thorax(fill, fill, fill)).source == "ct"


def test_padding_does_not_widen_the_window() -> None:
    voxels = np.random.default_rng(0).uniform(300, 900, (20, 20, 20)).astype(np.float32)
    voxels[:4] = -5000
    window = choose_window(_volume(voxels))
    assert (window.low, window.high) == (pytest.approx(303, abs=3), pytest.approx(897, abs=3))


@pytest.mark.parametrize("value", [0, 7, -3])
def test_window_of_a_constant_volume_is_not_empty(value: int) -> None:
    window = choose_window(_volume(np.full((4, 4, 4), value, np.int16)))
    assert window.high > window.low
    assert np.isfinite(window.apply(np.array([value]))).all()


def test_sampled_window_of_a_large_volume_is_close() -> None:
    voxels = np.random.default_rng(0).uniform(0, 1000, (120, 120, 60)).astype(np.float32)
    window = choose_window(_volume(voxels))
    assert window.low == pytest.approx(5, abs=2)
    assert window.high == pytest.approx(995, abs=2)


@pytest.mark.parametrize("value", [0, 7, -3000, 1e30, -1e30, 3e38])
def test_volume_of_one_value_has_a_window(value: float) -> None:
    voxels = np.full((4, 5, 6), value, np.float32)
    window = choose_window(_volume(voxels))
    assert np.isfinite((window.low, window.high)).all()
    assert window.high > window.low
    assert np.isfinite(window.apply(voxels)).all()


def test_values_whose_difference_overflows_have_a_window() -> None:
    voxels = np.linspace(-1, 1, 120).reshape(4, 5, 6).astype(np.float32) * np.float32(3e38)
    window = choose_window(_volume(voxels))
    assert np.isfinite((window.low, window.high)).all()
    assert window.high > window.low
