"""The simulation of the gate: its draws are what they say, and both rules live by them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.adaptation.gate_replays import RealStream, read_streams, replay, replay_null
from benchmarks.adaptation.gate_simulation import (
    NO_BETTER,
    PLAIN,
    Domain,
    Noise,
    discrete,
    heavy_tailed,
    left_skewed,
    live_with_former_rule,
    live_with_gate,
    normal,
    published_share,
    regret,
    withdrawn_share,
)

FLAT = Domain(0.0, 0.001)
NOISE = np.linspace(-0.01, 0.01, 13)


@pytest.mark.parametrize("noise", [normal, left_skewed, heavy_tailed, discrete])
def test_deviations_have_mean_zero_and_standard_deviation_one(noise: Noise) -> None:
    drawn = noise(np.random.default_rng(0), (200_000,))
    assert drawn.mean() == pytest.approx(0, abs=0.02)
    assert drawn.std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("domain", [Domain(0.03, 0.10), Domain(0.07, 0.15)])
def test_slices_and_candidates_are_correlated(domain: Domain) -> None:
    drawn = domain.draw(np.random.default_rng(0), 2, np.full(4000, 0.1))
    assert drawn.mean() == pytest.approx(0.1, abs=0.01)
    expected = (domain.patient_sd**2 + 0.7 * domain.slice_sd**2) / (domain.patient_sd**2 + domain.slice_sd**2)
    assert np.corrcoef(drawn[0, :, 4], drawn[0, :, 5])[0, 1] == pytest.approx(expected, abs=0.05)
    assert np.corrcoef(drawn[0, :, 0], drawn[1, :, 0])[0, 1] == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize("live", [live_with_gate, live_with_former_rule])
def test_both_rules_serve_what_always_helps_and_not_what_always_harms(live) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    assert live(FLAT.draw(rng, 5, np.full(12, 0.2)), 2, 2).serves[2] >= 0
    assert set(live(FLAT.draw(rng, 5, np.full(12, -0.2)), 2, 2).serves) == {-1}


def test_nobody_is_served_a_candidate_before_the_first_training() -> None:
    life = live_with_gate(FLAT.draw(np.random.default_rng(0), 1, np.full(10, 0.2)), 8, 1)
    assert life.serves[:8] == [-1] * 8
    assert life.serves[8:] == [0, 0]
    assert life.published == 8


def test_the_gate_holds_its_figures_in_a_small_simulation() -> None:
    """Wide bounds: the figures themselves are in benchmarks/results/gate.json."""
    assert published_share(NO_BETTER["normal, patients .10"], 0.0, (3, 1, 20), 18, 60, 1)[2] <= 0.15
    at_8, at_16, _ = published_share(PLAIN, 0.10, (8, 1, 16), 1, 100, 1)
    assert at_8 >= 0.55
    assert at_16 >= 0.85
    assert withdrawn_share(Domain(0.03, 0.10), 0.2, 10, 1) >= 0.6
    gains = np.array([-0.1, 0.1])
    assert regret(live_with_gate, [PLAIN], 5, 1, gains) < regret(live_with_former_rule, [PLAIN], 100, 1, gains) + 0.002


def test_real_patients_are_replayed(tmp_path: Path) -> None:
    helps, harms = (RealStream(np.full(8, gain) + NOISE[:8], np.full(5, gain) + NOISE[8:]) for gain in (0.2, -0.2))
    helped, harmed = replay(helps, 5, 0), replay(harms, 5, 0)
    assert (helped.patients, helped.gain) == (5, pytest.approx(0.2, abs=0.01))
    assert (helped.served, helped.published, helped.regret) == (1, 1, 0)
    assert (harmed.served, harmed.published, harmed.regret) == (0, 0, 0)
    assert replay_null({"helps": helps}, 40, 0) <= 0.15
    file = tmp_path / "streams.json"
    row = {"cross_fitted": helps.training.tolist(), "test": helps.test.tolist()}
    file.write_text(json.dumps({"domains": {"helps": row}}))
    again = read_streams(file)["helps"]
    assert (again.training.tolist(), again.test.tolist()) == (row["cross_fitted"], row["test"])
