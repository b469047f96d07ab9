"""Decide what may be claimed: "better than the unadapted model", wrong with probability 0.05 over a label's whole life.

The budget of 0.05 has two parts, and 0.003 are kept for what the approximations cost.

- **Sign flips**, for few patients. If a candidate is no better, the differences of a patient are as probable with the
  other sign. So the differences with signs flipped at random show how large a mean chance alone gives. The test looks
  at the newest candidate when the label has 8 patients (or at the first training, if there are more by then), and again
  at 16. Of the candidates that were trained on the same patients only the first one is looked at, because a person may
  choose the best of several by its evidence. What is spent up to a look depends on the number of patients only (Lan &
  DeMets 1983, "Discrete sequential boundaries for clinical trials"). All looks are flipped together, so the budget is
  not spent twice on candidates that resemble each other. A training without a new patient spends nothing and claims
  nothing.
- **Anytime-valid t-test**, for the long run: its e-value may be looked at after every patient. The n-th candidate of a
  label gets a share of 6 / (pi^2 n^2) of this part.

The sign flips are exact if patients are independent and their differences symmetric around a gain of zero or less,
whatever their spread and tails, and however alike or unlike the candidates are (with more than 14 patients the signs
are sampled, which adds an error of some 0.001). The t-test is exact for normal differences. Both are approximate for
skewed ones: a few patients who lose much, and have not come yet, cannot be seen. Therefore nothing is claimed with
fewer than 8 patients, nor on a mean that chance could give if patients had a standard deviation of 0.115, and the
t-test assumes that one at least. ``benchmarks/adaptation/gate_simulation.py`` measures what remains.

Packages were considered: confseq has no t-test and installs from source only, savvi needs numpy 2, expectation Python
3.12.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from baps.errors import BapsError
from baps.evaluation.evidence import EvidenceStream

ERROR_BUDGET = 0.05
"""Probability of ever claiming that something no better is better, over the life of a label."""

MIN_PATIENTS = 8
"""Fewest patients for a claim."""

_FLIP_BUDGET = 0.0455
_ANYTIME_BUDGET = 0.0015
"""The rest of the budget is kept for what the approximations cost."""

_LOOK_SIZES = (MIN_PATIENTS, 16)
"""Numbers of patients at which the sign flips look."""

_LATE_SHARE = 0.226
"""Share of the sign flips' budget that is kept for looks after the first possible one."""

_FLIPS = 2**14
"""Number of combinations of signs: all of them with up to 14 patients, random ones with more."""

_MIN_SPREAD = 0.115
"""Standard deviation over patients, Dice, that is assumed at least: few skewed differences look too much alike."""

_MIN_DEVIATIONS = float(stats.norm.isf(ERROR_BUDGET))
"""Standard errors by which a mean must exceed zero even with that spread."""

_EFFECT_VARIANCE = 1.0
"""Prior variance of gain / standard deviation in the t-test's mixture."""

SIGN_FLIPS = "sign flips"
ANYTIME = "anytime t-test"

_RANK_AFTER_LOSS = 10_000
"""More candidates than a label ever had."""

_NOT_FIRST = -1
"""What is registered for a candidate that was trained on the same patients as an earlier one."""

_UNREACHABLE = 1e9
"""A threshold that nothing reaches; JSON has no infinity."""

_TOLERANCE = 1e-9
"""Statistics that differ by less are equal."""


@dataclass(frozen=True)
class SignFlipTest:
    """A test of one candidate at one look.

    Attributes:
        patients: hashes of the patients that it rests on.
        differences: their paired differences then.
        threshold: the statistic, see ``flip_statistic``, from which the candidate is claimed.
    """

    patients: tuple[str, ...]
    differences: tuple[float, ...]
    threshold: float


@dataclass(frozen=True)
class Look:
    """A look of the sign flips at the newest candidate of a label.

    Attributes:
        patients_seen: number of patients that the label had.
        spent: probability of a wrong claim that the look added.
        test: the test, or None if the ledger was lost.
    """

    patients_seen: int
    spent: float
    test: SignFlipTest | None


@dataclass(frozen=True)
class Claim:
    """A claim that a candidate is better.

    Attributes:
        patients: hashes of the patients that it rests on.
        method: the test that it passed, ``sign flips`` or ``anytime t-test``.
        threshold: the statistic, or the logarithm of the e-value, that the evidence must reach.
    """

    patients: tuple[str, ...]
    method: str
    threshold: float

    def is_supported(self, stream: EvidenceStream) -> bool:
        """Return whether the evidence of those patients, as far as it still exists, passes the test.

        Args:
            stream: the evidence of the candidate.

        Returns:
            Whether it does.
        """
        differences = stream.differences(self.patients)
        if len(differences) < MIN_PATIENTS or flip_statistic(differences) < _least_statistic(differences) - _TOLERANCE:
            return False
        statistic = flip_statistic(differences) if self.method == SIGN_FLIPS else log_e_value(differences)
        return statistic >= self.threshold - _TOLERANCE


class ClaimLedger:
    """The claims of a label, and the error budget that they have spent.

    Keep it as long as the label exists, over trainings, restarts and changes of the model: a fresh ledger has a fresh
    budget.
    """

    def __init__(self) -> None:
        self._looks: list[Look] = []
        self._claims: dict[str, Claim] = {}  # By key of the stream, as the other ones.
        self._retracted: set[str] = set()
        self._seen: dict[str, None] = {}  # In order of arrival.
        self._registered: dict[str, int] = {}  # Number of patients seen when a candidate came.
        self._ranks: dict[str, int] = {}
        self._patients_at_last_rank = 0

    @property
    def spent(self) -> float:
        """Probability of a wrong claim that all tests so far have spent, at most ``ERROR_BUDGET``."""
        return self._flips_spent + sum(map(_anytime_level, self._ranks.values()))

    @property
    def _flips_spent(self) -> float:
        return sum(look.spent for look in self._looks)

    @property
    def _next_rank(self) -> int:
        return max(self._ranks.values(), default=0) + 1

    @property
    def patients_seen(self) -> int:
        """Number of patients who were ever part of the evidence that was tested."""
        return len(self._seen)

    def holds(self, stream: EvidenceStream) -> bool:
        """Return whether a candidate is claimed to be better, and the evidence for it still exists.

        Args:
            stream: the evidence of the candidate.

        Returns:
            Whether the claim holds.
        """
        claim = self._claims.get(stream.key)
        return claim is not None and claim.is_supported(stream)

    def retract(self, stream: EvidenceStream) -> None:
        """Retract the claim of a candidate that turned harmful; it is not claimed again, and what it spent stays spent.

        Args:
            stream: the evidence of the candidate; one without a claim is ignored.
        """
        if self._claims.pop(stream.key, None):
            self._retracted.add(stream.key)

    def update(self, newest: EvidenceStream, others: Sequence[EvidenceStream] = ()) -> None:
        """Test candidates if patients have come since the last test.

        Args:
            newest: the evidence of the newest candidate. Only this one is tested with sign flips, because to choose
                among several candidates by their evidence would be another test.
            others: the evidence of other candidates, which are tested with their own shares of the anytime-valid test.
        """
        streams = (newest, *others)
        for stream in streams:
            self._seen.update(dict.fromkeys(stream.patients))
        if newest.key not in self._registered:
            is_new = self.patients_seen not in self._registered.values()
            self._registered[newest.key] = self.patients_seen if is_new else _NOT_FIRST
        may_claim = [
            s for s in streams if len(s) >= MIN_PATIENTS and not self.holds(s) and s.key not in self._retracted
        ]
        last_look = self._looks[-1].patients_seen if self._looks else 0
        is_first = self._registered[newest.key] != _NOT_FIRST
        if newest in may_claim and is_first and self.patients_seen >= _next_look(last_look):
            self._look(newest)
        unranked = [stream.key for stream in may_claim if stream.key not in self._ranks]
        if unranked and self.patients_seen > self._patients_at_last_rank:
            self._ranks[unranked[0]] = self._next_rank
            self._patients_at_last_rank = self.patients_seen
        for stream in may_claim:
            if rank := self._ranks.get(stream.key):
                self._claim(stream, ANYTIME, -math.log(_anytime_level(rank)))

    def _look(self, stream: EvidenceStream) -> None:
        earlier = [look.test for look in self._looks if look.test]
        groups = [*(test.patients for test in earlier), stream.patients]
        patients = dict.fromkeys(patient for group in groups for patient in group)
        columns = {patient: number for number, patient in enumerate(patients)}
        signs = _sign_flips(len(patients))

        def flip(of: Sequence[str], differences: NDArray[np.float64]) -> NDArray[np.float64]:
            row = np.zeros(len(patients))
            row[[columns[patient] for patient in of]] = differences / (np.linalg.norm(differences) or 1)
            return signs @ row

        paid = np.zeros(len(signs), bool)  # Combinations that an earlier look would have claimed.
        for test in earlier:
            paid |= flip(test.patients, np.array(test.differences)) >= test.threshold - _TOLERANCE
        statistics = flip(stream.patients, stream.differences())
        available = _flip_budget(self.patients_seen) - self._flips_spent
        threshold = max(_boundary(statistics[~paid], available * len(signs)), _least_statistic(stream.differences()))
        spent = float(((statistics >= threshold - _TOLERANCE) & ~paid).mean())
        test = SignFlipTest(stream.patients, tuple(stream.differences().tolist()), threshold)
        self._looks.append(Look(self.patients_seen, spent, test))
        self._claim(stream, SIGN_FLIPS, threshold)

    def _claim(self, stream: EvidenceStream, method: str, threshold: float) -> None:
        claim = Claim(stream.patients, method, threshold)
        if not self.holds(stream) and claim.is_supported(stream):
            self._claims[stream.key] = claim

    def patients_needed(self, stream: EvidenceStream) -> int | None:
        """Estimate how many more patients a claim takes, if they are like those so far.

        Args:
            stream: the evidence of a candidate.

        Returns:
            The number of patients, or None if it is more than 100, or the candidate is not better so far.
        """
        differences = stream.differences()
        if not len(differences) or differences.mean() <= 0:
            return None
        # Few patients say little of their spread.
        variance = (differences.var() * len(differences) + _MIN_SPREAD**2) / len(differences)
        effect = float(differences.mean() / np.sqrt(variance))
        last_look = self._looks[-1].patients_seen if self._looks else 0
        evidence_needed = -math.log(_anytime_level(self._ranks.get(stream.key, self._next_rank)))
        for more in range(1, 101):
            count, seen = len(differences) + more, self.patients_seen + more
            if count < MIN_PATIENTS or float(differences.mean()) * math.sqrt(count) < _MIN_DEVIATIONS * _MIN_SPREAD:
                continue
            t = effect * math.sqrt(count)
            level = _flip_budget(seen) - self._flips_spent
            if _next_look(last_look) <= seen and level > 0 and t >= stats.t.isf(level, count - 1):
                return more
            if _log_e_value(t, count) >= evidence_needed:
                return more
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return the ledger as JSON.

        Returns:
            What ``from_dict`` reads, and ``spent``.
        """
        return {
            "spent": self.spent,
            "patients_seen": list(self._seen),
            "looks": [asdict(look) for look in self._looks],
            "registered": dict(self._registered),
            "anytime_ranks": dict(self._ranks),
            "patients_at_last_rank": self._patients_at_last_rank,
            "claims": {key: asdict(claim) for key, claim in self._claims.items()},
            "retracted": sorted(self._retracted),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ClaimLedger:
        """Read a ledger back.

        Args:
            record: the JSON, see ``to_dict``.

        Returns:
            The ledger.

        Raises:
            BapsError: if the record is damaged. Use ``spent_ledger`` then.
        """
        ledger = cls()
        try:
            ledger._seen = dict.fromkeys(_texts(record["patients_seen"]))
            for look in record["looks"]:
                test = look["test"] and SignFlipTest(
                    tuple(map(str, look["test"]["patients"])),
                    tuple(map(_number, look["test"]["differences"])),
                    _number(look["test"]["threshold"]),
                )
                _require(test is None or len(test.patients) == len(test.differences))
                ledger._looks.append(Look(int(look["patients_seen"]), _number(look["spent"]), test))
            ledger._registered = {str(key): int(seen) for key, seen in record["registered"].items()}
            ledger._ranks = {str(key): int(rank) for key, rank in record["anytime_ranks"].items()}
            ledger._patients_at_last_rank = int(record["patients_at_last_rank"])
            ledger._retracted = set(_texts(record["retracted"]))
            for key, claim in record["claims"].items():
                _require(claim["method"] in (SIGN_FLIPS, ANYTIME))
                patients = tuple(map(str, claim["patients"]))
                ledger._claims[str(key)] = Claim(patients, claim["method"], _number(claim["threshold"]))
            _require(math.isclose(ledger.spent, _number(record["spent"]), abs_tol=_TOLERANCE))
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise BapsError(
                "The error budget of a label cannot be read, so it counts as spent. Restore it from your backup."
            ) from error
        return ledger


def spent_ledger() -> ClaimLedger:
    """Make the ledger of a label whose ledger was lost: it claims nothing on few patients.

    Returns:
        A ledger with no budget for sign flips, and with such small shares for the anytime-valid test that they cannot
            have been spent before.
    """
    ledger = ClaimLedger()
    ledger._looks.append(Look(_LOOK_SIZES[-1], _FLIP_BUDGET, None))
    ledger._ranks["lost"] = _RANK_AFTER_LOSS
    return ledger


def _number(value: Any) -> float:
    number = float(value)
    _require(math.isfinite(number))
    return number


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError


def _texts(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise TypeError
    return value


def flip_statistic(differences: NDArray[np.float64]) -> float:
    """Return the sum of differences over the root of their sum of squares.

    Given the absolute differences it grows with the t statistic.

    Args:
        differences: paired differences (patients,) of Dice.

    Returns:
        The statistic, at most the root of the number of patients; 0 if there is no difference.
    """
    return float(differences.sum() / (np.linalg.norm(differences) or 1))


def log_e_value(differences: NDArray[np.float64]) -> float:
    """Return the logarithm of the t-test's e-value against the hypothesis that the candidate makes no difference.

    Under that hypothesis, and with normal differences, the e-value ever exceeds 1/a with probability at most a.

    Args:
        differences: paired differences (patients,) of Dice.

    Returns:
        The logarithm, or minus infinity unless the mean is positive.
    """
    count, deviation = len(differences), float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    if count < 2 or differences.mean() <= 0:
        return -math.inf
    return _log_e_value(float(differences.mean()) * math.sqrt(count) / max(deviation, _MIN_SPREAD), count)


def _log_e_value(t: float, count: int) -> float:
    # The Bayes factor of a normal effect size with the right Haar prior of the scale: Rouder et al. 2009, "Bayesian t
    # tests", eq. 1 with a fixed g; a test martingale by Wang & Ramdas 2025, "Anytime-valid t-tests and confidence
    # sequences for Gaussian means with unknown variance".
    shrunk = 1 + count * _EFFECT_VARIANCE
    square = t * t / (count - 1)
    return -0.5 * math.log(shrunk) + count / 2 * (math.log1p(square) - math.log1p(square / shrunk))


def confidence_sequence(differences: NDArray[np.float64], error: float = ERROR_BUDGET) -> list[tuple[float, float]]:
    """Return intervals that contain the mean gain after every patient at once, with probability 1 - error.

    This inverts the anytime-valid t-test, see ``log_e_value``. It is meant for a plot; it does not know of changes.

    Args:
        differences: paired differences (patients,) of Dice in order of arrival.
        error: probability that the gain is ever outside.

    Returns:
        Low and high end after each patient, within -1 and 1.
    """
    intervals = []
    for count in range(1, len(differences) + 1):
        known = differences[:count]
        shrunk = 1 + count * _EFFECT_VARIANCE
        ratio = (shrunk / error**2) ** (1 / count)
        width = 2.0
        if count > 1 and ratio < shrunk:
            spread = max(float(known.std(ddof=1)), _MIN_SPREAD)
            width = spread * math.sqrt((count - 1) / count * (ratio - 1) / (1 - ratio / shrunk))
        mean = float(known.mean())
        intervals.append((max(mean - width, -1.0), min(mean + width, 1.0)))
    return intervals


def _least_statistic(differences: NDArray[np.float64]) -> float:
    """Return the flip statistic at which the mean exceeds chance if the standard deviation is ``_MIN_SPREAD``."""
    root_mean_square = float(np.sqrt(np.square(differences).mean()))
    return _MIN_DEVIATIONS * _MIN_SPREAD / max(root_mean_square, _TOLERANCE)


def _next_look(last: int) -> float:
    return next((size for size in _LOOK_SIZES if size > last), math.inf)


def _flip_budget(patients_seen: int) -> float:
    """Return how much of the budget the sign flips may have spent when so many patients have been seen."""
    return _FLIP_BUDGET * (1 - _LATE_SHARE * (MIN_PATIENTS / max(patients_seen, MIN_PATIENTS)) ** 3)


def _anytime_level(rank: int) -> float:
    return _ANYTIME_BUDGET * 6 / (math.pi * rank) ** 2


def _boundary(statistics: NDArray[np.float64], allowed: float) -> float:
    """Return the smallest statistic that at most so many combinations of signs reach."""
    ordered = np.sort(statistics)[::-1]
    above = ordered[ordered > ordered[min(int(allowed), len(ordered) - 1)] + _TOLERANCE]
    return float(above[-1]) if len(above) and allowed > 0 else _UNREACHABLE


@lru_cache(maxsize=len(_LOOK_SIZES))
def _sign_flips(count: int) -> NDArray[np.float64]:
    """Return combinations of signs (combinations, count), the first one without a flip."""
    if 2**count <= _FLIPS:
        return np.array(list(product((1.0, -1.0), repeat=count)))
    flips = np.random.default_rng(0).choice((1.0, -1.0), (_FLIPS, count))
    flips[0] = 1
    return flips
