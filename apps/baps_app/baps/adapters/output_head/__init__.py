"""The output-side head: a small local network that corrects what comes back from the black box."""

from __future__ import annotations

from baps.adapters.output_head.features import FEATURES, GRID, head_features
from baps.adapters.output_head.head import OutputHead

__all__ = ["FEATURES", "GRID", "OutputHead", "head_features"]
