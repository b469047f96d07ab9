"""Choosing parts, by scores that are given."""

from __future__ import annotations

import numpy as np
import pytest

from baps.training.cross_fitting import MIN_GAIN, CrossFit, Parts

UNIT = np.array([0, 0, 1, 1, 2, 2, 3, 3])
ZOOM, HEAD = Parts(0.5), Parts(head="augmented")
BOTH, ALL = Parts(0.5, head="oriented"), Parts(0.75, True, "augmented")


def cross_fit(**scores: list[float]) -> CrossFit:
    """One score per unit; the two answers of a unit differ by a tenth."""
    parts = {"unadapted": Parts(), "zoom": ZOOM, "head": HEAD, "both": BOTH}
    spread = np.tile([-0.05, 0.05], 4)
    return CrossFit(UNIT, np.arange(4) % 2, {parts[name]: np.repeat(dice, 2) + spread for name, dice in scores.items()})


@pytest.mark.parametrize(
    ("parts", "name"),
    [(Parts(), "unadapted"), (ZOOM, "zoom"), (BOTH, "zoom + head"), (ALL, "zoom + visual prompt + head")],
)
def test_combinations_are_named(parts: Parts, name: str) -> None:
    assert parts.name == name


def test_a_unit_counts_once_however_many_answers_it_has() -> None:
    fit = CrossFit(np.array([0, 0, 0, 1]), np.array([0, 1, 0]))
    np.testing.assert_allclose(fit.by_unit(np.array([1, 2, 3, 10.0])), [2, 10, 0])


@pytest.mark.parametrize(("gain", "kept"), [(MIN_GAIN - 0.001, False), (MIN_GAIN + 0.001, True)])
def test_a_part_must_bring_something(gain: float, kept: bool) -> None:
    fit = cross_fit(unadapted=[0.5] * 4, zoom=[0.5 + gain] * 4)
    assert fit.choose(np.ones(4, bool)) == (ZOOM if kept else Parts())
    fit = cross_fit(zoom=[0.5] * 4, both=[0.5 + MIN_GAIN + gain] * 4)  # And each part anew, and the orientation.
    assert fit.choose(np.ones(4, bool)) == (BOTH if kept else ZOOM)


def test_a_part_brings_what_is_lost_without_it() -> None:
    fit = cross_fit(unadapted=[0.4] * 4, zoom=[0.6] * 4, both=[0.7] * 4)
    assert fit.gain("zoom") == pytest.approx(0.3)
    assert fit.gain("head") == pytest.approx(0.1)
    assert fit.gain("visual prompt") is None


def test_the_choice_for_a_group_is_that_of_the_others() -> None:
    """Each group would choose what is best for itself; what the other one chooses is what it is judged with."""
    fit = cross_fit(unadapted=[0.4] * 4, zoom=[0.9, 0.2, 0.9, 0.2], head=[0.1, 0.8, 0.1, 0.8])
    score = fit.by_unit(fit.score_choice())
    np.testing.assert_allclose(score, [0.1, 0.2, 0.1, 0.2])
    assert fit.choose(np.array([True, False, True, False])) == ZOOM
    assert fit.choose(np.array([True, False, True, False]), lambda parts: parts != ZOOM) == Parts()


def test_chance_alone_gains_nothing() -> None:
    """The best of many useless combinations looks good, but not on those who did not choose it."""
    random, gains, naive = np.random.default_rng(0), [], []
    for _ in range(300):
        unit = np.arange(8)
        noisy = {Parts(0.9 - n / 100): random.normal(0.5, 0.1, 8) for n in range(6)}
        fit = CrossFit(unit, unit % 4, {Parts(): np.full(8, 0.5), **noisy})
        gains.append(fit.score_choice().mean() - 0.5)
        naive.append(fit.scores[fit.choose(np.ones(8, bool))].mean() - 0.5)
    assert np.mean(naive) > 0.02
    assert abs(np.mean(gains)) < 3 * np.std(gains) / np.sqrt(300) + 0.002


def test_the_procedure_is_scored_for_every_set_of_parts() -> None:
    fit = cross_fit(unadapted=[0.5] * 4, zoom=[0.4] * 4, head=[0.7] * 4, both=[0.6] * 4)
    means = {name: float(dice.mean()) for name, dice in fit.score_parts().items()}
    # With zoom and head allowed the head alone is chosen; a zoom that harms is not chosen.
    assert means == pytest.approx({"unadapted": 0.5, "zoom": 0.5, "head": 0.7, "zoom + head": 0.7})
