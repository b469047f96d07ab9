"""Volumes and short trainings of heads."""

from __future__ import annotations

import pytest

from baps.evaluation.labelled_volumes import VolumesByPatient
from baps.training.volumes import part_training
from tests.support.flood import leaky_volume


@pytest.fixture(scope="session")
def volumes() -> VolumesByPatient:
    return {one.patient: [one] for one in map(leaky_volume, range(5))}


@pytest.fixture
def short_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train heads for a few steps only, where their quality is not judged."""
    for steps in ("_CHOICE_STEPS", "_FOLD_STEPS", "_HEAD_STEPS"):
        monkeypatch.setattr(part_training, steps, 3)
