"""When a fit has come to its end: its loss does not fall any more."""

from __future__ import annotations

from collections.abc import Sequence

_SMOOTHED = 10
_PATIENCE = 20
_LEAST = 1e-3


class Plateau:
    """The mean loss of ten epochs, compared with what it was twenty epochs before (Silva-Rodriguez et al.).

    As the mean needs ten, nothing is said before epoch thirty.

    Args:
        losses: of earlier epochs.
    """

    def __init__(self, losses: Sequence[float] = ()) -> None:
        self._losses = list(losses)

    def reached(self, loss: float) -> bool:
        """Take in an epoch's loss; whether it fell by less than 0.001."""
        self._losses.append(loss)
        if len(self._losses) < _SMOOTHED + _PATIENCE:
            return False
        now, before = self._losses[-_SMOOTHED:], self._losses[-_SMOOTHED - _PATIENCE : -_PATIENCE]
        return (sum(before) - sum(now)) / _SMOOTHED < _LEAST
