"""Decide which candidate to serve: the one with the least expected loss of Dice, under a weak prior on gains.

This is a decision, not a claim: a wrong one costs the radiologists some Dice, and the next patients correct it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from baps.evaluation.evidence import EvidenceStream

_GAINS = np.linspace(-0.6, 0.8, 141)
"""Possible mean gains of a patient, Dice."""

_SPREADS = np.geomspace(0.06, 0.4, 5)[:, None]
"""Possible standard deviations over patients, Dice; all are equally probable in advance."""

_CHANGE_PROBABILITY = 1 / 60
"""Probability that the gain changes from one patient to the next, for example because a scanner was replaced."""

_TAIL = 4
"""Degrees of freedom of a patient's difference around the gain: a single patient who loses much is no change."""

_INTERVAL = 0.9
"""Probability that the gain lies within the interval that is shown."""


def _prior(*parts: tuple[float, float, float]) -> NDArray[np.float64]:
    density = sum(weight * stats.norm.pdf(_GAINS, mean, sd) for weight, mean, sd in parts)
    return np.asarray(density / np.sum(density))


# The gains of public domains (benchmarks/results/adapt.json) lie around +.15 to +.25, and a few domains lose.
_PRIOR = _prior((0.8, 0.15, 0.15), (0.2, -0.10, 0.10))
# A candidate was trained on more labels than the one before it, so it is a little better if anything.
_ADVANTAGE_PRIOR = _prior((1.0, 0.005, 0.05))


@dataclass(frozen=True)
class GainEstimate:
    """What is probable of the mean gain for the next patient.

    Attributes:
        mean: expected gain, Dice.
        low: lower end of the 90 % credible interval.
        high: upper end of the interval.
        probability_better: probability that the gain is positive, 0 to 1.
    """

    mean: float
    low: float
    high: float
    probability_better: float

    def text(self) -> str:
        """Return the estimate for people.

        Returns:
            Mean and interval, as in ``+.09 (-.01 to +.19)``.
        """
        return f"{format_gain(self.mean)} ({format_gain(self.low)} to {format_gain(self.high)})"


def format_gain(gain: float) -> str:
    """Format a difference of Dice.

    Args:
        gain: the difference, -1 to 1.

    Returns:
        The sign and two decimals, as in ``+.09``.
    """
    return f"{gain:+.2f}".replace("0.", ".", 1)


def estimate_gain(differences: NDArray[np.float64], advantage: bool = False) -> GainEstimate:
    """Estimate the present gain from paired differences in order of arrival.

    The differences have heavy tails (Student's t) around a gain that rarely jumps, and is then drawn from the prior
    again. So the last patients count more than the first ones as soon as they disagree with them, and a single patient
    does not. The filter is that of a product partition model (Adams & MacKay 2007, "Bayesian online changepoint
    detection"), on a grid instead of run lengths.

    Args:
        differences: paired differences (patients,) of Dice.
        advantage: whether the differences are those between two candidates of one label, which are small, instead of
            those from the unadapted model.

    Returns:
        The estimate.
    """
    return _estimate_gain(tuple(differences.tolist()), advantage)


@lru_cache(maxsize=256)
def _estimate_gain(values: tuple[float, ...], advantage: bool) -> GainEstimate:
    differences, prior = np.array(values), _ADVANTAGE_PRIOR if advantage else _PRIOR
    squares = ((differences[:, None, None] - _GAINS) / _SPREADS) ** 2
    likelihoods = (1 + squares / _TAIL) ** (-(_TAIL + 1) / 2) / _SPREADS
    joint = np.tile(prior / len(_SPREADS), (len(_SPREADS), 1))
    for number, likelihood in enumerate(likelihoods):
        if number:
            changed = joint.sum(1, keepdims=True) * prior
            joint = (1 - _CHANGE_PROBABILITY) * joint + _CHANGE_PROBABILITY * changed
        joint = joint * likelihood
        joint /= joint.sum()
    posterior = joint.sum(0)
    cumulative = posterior.cumsum()
    low, high = (
        float(_GAINS[np.searchsorted(cumulative, level)]) for level in (0.5 - _INTERVAL / 2, 0.5 + _INTERVAL / 2)
    )
    return GainEstimate(float(posterior @ _GAINS), low, high, float(posterior[_GAINS > 1e-9].sum()))


def choose_served(streams: Sequence[EvidenceStream]) -> EvidenceStream | None:
    """Choose what to serve. A candidate that has not helped its patients so far is not served, whatever the prior.

    Args:
        streams: the evidence of the candidates that may be served, oldest first.

    Returns:
        The evidence of the candidate with the highest expected Dice, or None for the unadapted model. A later candidate
            is compared with an earlier one on the patients that judged both.
    """
    best: EvidenceStream | None = None
    for stream in streams:
        differences = stream.differences()
        if not len(stream) or differences.mean() <= 0 or estimate_gain(differences).mean <= 0:
            continue
        if best is not None:
            shared = [patient for patient in stream.patients if patient in best]
            advantage = stream.differences(shared) - best.differences(shared)
            if estimate_gain(advantage, advantage=True).mean <= 0:
                continue
        best = stream
    return best
