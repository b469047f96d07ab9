"""Tests on the real images beside the repository; skipped if there are none."""

from __future__ import annotations

import pytest

from baps.blackbox import BlackBox
from baps.evaluation.scoring import score_slices
from benchmarks.real_data import DOMAINS, ROOT, Domain, slices

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not ROOT.is_dir(), reason=f"no real images at {ROOT}; set BAPS_REAL_DATA"),
]


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)
def test_every_domain_has_labelled_test_slices(domain: Domain) -> None:
    patients = 0
    for case in slices(domain, "test", 64, max_slices=2):
        patients += 1
        for piece in case:
            assert piece.image.shape == (64, 64, 3)
            assert piece.target.any()
            assert piece.image.std() > 0
    assert patients >= 2


@pytest.mark.parametrize(("name", "count"), [("CHAOS liver, MR", 6), ("hippocampus, MR", 39)])
def test_no_patient_is_in_two_splits(name: str, count: int) -> None:
    """Two sides of a hippocampus are one patient."""
    domain = next(d for d in DOMAINS if d.name == name)
    patients = [case[0].patient for split in ("train", "validation", "test") for case in slices(domain, split, 64, 1)]
    assert len(patients) == len(set(patients)) == count


@pytest.mark.slow
@pytest.mark.parametrize(("name", "min_dice"), [("BTCV liver, CT", 0.6), ("CHAOS spleen, MR", 0.7)])
def test_bundled_model_segments_boxed_organs_on_unseen_images(bundled: BlackBox, name: str, min_dice: float) -> None:
    domain = next(d for d in DOMAINS if d.name == name)
    image_size = bundled.capabilities.input_size
    cases = [piece for case in slices(domain, "test", image_size, max_slices=6) for piece in case]
    assert score_slices(bundled, None, cases, "box", 0, 1).mean() > min_dice
