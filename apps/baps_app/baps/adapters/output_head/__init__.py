"""Correct the black box's masks with an output head, which is a small local network."""

from __future__ import annotations

from baps.adapters.output_head.features import FEATURES, GRID, head_features, to_logits
from baps.adapters.output_head.head import OutputHead

__all__ = ["FEATURES", "GRID", "OutputHead", "head_features", "to_logits"]
