"""How well a mask fits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def dice(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Dice coefficient of two masks of the same shape, 0 to 1; two empty masks agree (1)."""
    total = int(mask.sum()) + int(truth.sum())
    return 2.0 * int((mask & truth).sum()) / total if total else 1.0
