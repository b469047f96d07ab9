"""Fitting an adapter to a few labelled volumes."""

from __future__ import annotations

from .checkpoint import Checkpoint
from .example import Example, mean_size
from .fit import Fitted, fit
from .settings import FitSettings

__all__ = ["Checkpoint", "Example", "FitSettings", "Fitted", "fit", "mean_size"]
