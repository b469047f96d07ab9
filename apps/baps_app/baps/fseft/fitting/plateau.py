"""Detect that the loss of a fit no longer decreases."""

from __future__ import annotations

from collections.abc import Sequence

_WINDOW = 10
_PATIENCE = 20
_MIN_DECREASE = 1e-3


class Plateau:
    """Compare the mean loss of ten epochs with that of twenty epochs earlier (Silva-Rodriguez et al.).

    No plateau is detected before epoch thirty.

    Args:
        losses: losses of earlier epochs.
    """

    def __init__(self, losses: Sequence[float] = ()) -> None:
        self._losses = list(losses)

    def reached(self, loss: float) -> bool:
        """Add the loss of an epoch.

        Args:
            loss: mean loss of the epoch.

        Returns:
            Whether the mean loss fell by less than 0.001.
        """
        self._losses.append(loss)
        if len(self._losses) < _WINDOW + _PATIENCE:
            return False
        now, before = self._losses[-_WINDOW:], self._losses[-_WINDOW - _PATIENCE : -_PATIENCE]
        return (sum(before) - sum(now)) / _WINDOW < _MIN_DECREASE
