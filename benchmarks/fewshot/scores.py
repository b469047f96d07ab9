"""Scores of test volumes as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from baps.fseft.evaluation import OrganScores


def to_json(scores: Iterable[OrganScores]) -> list[dict[str, Any]]:
    """Convert scores to JSON, which has no infinity: the distance from an empty mask is None."""
    return [{key: None if value == math.inf else value for key, value in asdict(score).items()} for score in scores]
