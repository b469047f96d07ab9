"""Measure how well a mask fits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def dice(mask: NDArray[np.bool_], target: NDArray[np.bool_]) -> float:
    """Return the Dice coefficient of two masks.

    Args:
        mask: predicted mask, of any shape.
        target: true mask, of the same shape.

    Returns:
        The coefficient, 0 to 1. Two empty masks agree (1).
    """
    total = int(mask.sum()) + int(target.sum())
    return 2.0 * int((mask & target).sum()) / total if total else 1.0
