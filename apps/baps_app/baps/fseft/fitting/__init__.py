"""Fit an adapter to a few labelled volumes."""

from __future__ import annotations

from baps.fseft.fitting.checkpoint import Checkpoint
from baps.fseft.fitting.example import Example, mean_organ_size
from baps.fseft.fitting.fit import FitResult, fit
from baps.fseft.fitting.settings import FitSettings

__all__ = ["Checkpoint", "Example", "FitResult", "FitSettings", "fit", "mean_organ_size"]
