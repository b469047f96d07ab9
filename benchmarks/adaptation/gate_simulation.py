"""Let simulated labels live with the gate: wrong claims, right claims, and Dice lost by serving the wrong model.

A simulated patient has 12 slices. The difference of Dice of a slice is the gain, plus a deviation of the patient, plus
one of the slice; slices that follow each other have a correlation of 0.7, and so have the deviations of two candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.signal import lfilter

from baps.evaluation.gate import Gate

SLICES = 12
SLICE_CORRELATION = 0.7
CANDIDATE_CORRELATION = 0.7

Noise = Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float64]]
"""Draws deviations with mean 0 and standard deviation 1."""


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Draw normal deviations.

    Args:
        rng: the generator.
        shape: shape of the result.

    Returns:
        The deviations.
    """
    return rng.normal(size=shape)


def left_skewed(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Draw deviations of which few are large losses: skewness -2.

    Args:
        rng: the generator.
        shape: shape of the result.

    Returns:
        The deviations.
    """
    return 1 - rng.exponential(size=shape)


def heavy_tailed(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Draw deviations of Student's t with 4 degrees of freedom.

    Args:
        rng: the generator.
        shape: shape of the result.

    Returns:
        The deviations.
    """
    return rng.standard_t(4, shape) / np.sqrt(2)


def discrete(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Draw deviations of two values: four of five a small gain, one a loss of four times that.

    Args:
        rng: the generator.
        shape: shape of the result.

    Returns:
        The deviations.
    """
    return np.where(rng.random(shape) < 0.8, 0.5, -2.0)


@dataclass(frozen=True)
class Domain:
    """How much patients and slices differ.

    Attributes:
        patient_sd: standard deviation of the patients' mean differences, Dice.
        slice_sd: standard deviation of slices within a patient, Dice.
        patient_noise: distribution of the patients' deviations.
        slice_noise: distribution of the slices' deviations.
    """

    patient_sd: float
    slice_sd: float
    patient_noise: Noise = normal
    slice_noise: Noise = normal

    def draw(self, rng: np.random.Generator, candidates: int, gains: NDArray[np.float64]) -> NDArray[np.float64]:
        """Draw the differences that candidates make for patients.

        Args:
            rng: the generator.
            candidates: number of candidates.
            gains: true gain for each patient (patients,), Dice.

        Returns:
            Differences (candidates, patients, slices) of Dice.
        """
        shape = (len(gains), SLICES)

        def deviations() -> NDArray[np.float64]:
            start = self.slice_noise(rng, (len(gains), 1))
            steps = np.sqrt(1 - SLICE_CORRELATION**2) * self.slice_noise(rng, (len(gains), SLICES - 1))
            slices = lfilter([1], [1, -SLICE_CORRELATION], np.concatenate([start, steps], 1))
            return self.patient_sd * self.patient_noise(rng, (len(gains), 1)) + self.slice_sd * slices

        # Which deviations are shared and which are a candidate's own is drawn, so that their distribution stays.
        shared, result = deviations(), np.empty((candidates, *shape))
        for candidate in range(candidates):
            own = rng.random((len(gains), 1)) > np.sqrt(
                CANDIDATE_CORRELATION
            )  # Two share theirs if neither has its own.
            result[candidate] = np.where(own, deviations(), shared)
        return np.clip(result + gains[:, None], -1, 1)


PLAIN = Domain(0.10, 0.0)
CALM, NOISY = Domain(0.03, 0.10), Domain(0.07, 0.15)
NO_BETTER = {
    "normal, patients .10": PLAIN,
    "normal, patients .03, slices .10": CALM,
    "normal, patients .07, slices .15": NOISY,
    "normal, patients .20": Domain(0.20, 0.0),
    "heavy tails, patients .10": Domain(0.10, 0.0, heavy_tailed),
    "left-skewed, patients .03, slices .10": Domain(0.03, 0.10, left_skewed, left_skewed),
    "left-skewed, patients .07, slices .15": Domain(0.07, 0.15, left_skewed, left_skewed),
    "left-skewed, patients .10": Domain(0.10, 0.0, left_skewed),
    "two values, +.05 and -.20": Domain(0.10, 0.0, discrete),
}
"""Domains in which wrong claims are counted; the first four are what ``false_published`` reports."""

TRAININGS = 20
CADENCES = {"from 3 patients, after each": (3, 1, 24), "from 8 patients, after two": (8, 2, 48)}
"""First training, patients between trainings, and patients of a life."""

GAINS = np.arange(-0.10, 0.301, 0.05)
SERVED_PATIENTS = 30


@dataclass(frozen=True)
class Life:
    """What happened to a label.

    Attributes:
        serves: what each patient (patients,) was served: number of the candidate, or -1 for the unadapted model.
        published: number of labelled patients when a candidate was first published, or None.
    """

    serves: list[int]
    published: int | None


def live_with_gate(differences: NDArray[np.float64], first: int, every: int, serve_trials: bool = True) -> Life:
    """Let a label live with the gate.

    Args:
        differences: differences (candidates, patients, slices), see ``Domain.draw``.
        first: number of labelled patients at the first training.
        every: number of patients between trainings.
        serve_trials: whether candidates on trial serve.

    Returns:
        The life.
    """
    means = differences.mean(2)
    gate, serves, published, trained = Gate(), -1, None, 0
    course = []
    for patient in range(means.shape[1]):
        course.append(serves)
        for stream in gate.active_streams(""):
            stream.add_volume(str(patient), "", "", means[int(stream.candidate), patient])
        labelled = patient + 1
        if labelled >= first and (labelled - first) % every == 0 and trained < len(means):
            stream = gate.open(str(trained), "")
            for known in range(labelled):
                stream.add(str(known), means[trained, known])
            trained += 1
        if trained:
            best = gate.update("", serve_trials)
            serves = -1 if best is None else int(best)
            if published is None and any(gate.ledger.holds(stream) for stream in gate.active_streams("")):
                published = labelled
    return Life(course, published)


def live_with_former_rule(differences: NDArray[np.float64], first: int, every: int) -> Life:
    """Let a label live with the rule of version 0.1: publish if gain > 0 and above its standard error.

    Up to four patients are cross-validated. With more, a fifth is held back (always the same ones), and the last
    patient who came since the served candidate was trained. The unit is the patient with three judges or more, else the
    slice. A candidate must not be worse than the served one: on judges whom neither was trained on, or else by gain.

    Args:
        differences: differences (candidates, patients, slices), see ``Domain.draw``.
        first: number of labelled patients at the first training.
        every: number of patients between trainings.

    Returns:
        The life.
    """
    means = differences.mean(2)
    held_back: list[int] = []
    serves, seen, served_gain, published, trained = -1, set[int](), 0.0, None, 0
    course = []
    for patient in range(means.shape[1]):
        course.append(serves)
        labelled = patient + 1
        if labelled > 4 and len(held_back) < max(1, round(0.2 * labelled)):
            held_back.append(patient)
        if labelled < max(first, 2) or (labelled - first) % every or trained == len(means):
            continue
        candidate, trained = trained, trained + 1
        newcomers = [known for known in range(labelled) if serves >= 0 and known not in seen]
        if labelled > 4:
            judges = held_back + [known for known in newcomers[-1:] if known not in held_back]
            training = set(range(labelled)) - set(judges)
        else:
            judges, training = newcomers or list(range(labelled)), set(range(labelled))
        units = means[candidate, judges] if len(judges) >= 3 else differences[candidate, judges].ravel()
        gain, error = means[candidate, judges].mean(), units.std(ddof=1) / np.sqrt(len(units))
        fair = [judge for judge in judges if serves >= 0 and judge not in seen]
        if fair:
            no_worse = (means[candidate, fair] - means[serves, fair]).mean() >= 0
        else:
            no_worse = serves < 0 or gain + error >= served_gain
        if gain > max(0, error) and no_worse:
            serves, seen, served_gain = candidate, seen | training, gain
            published = published or labelled
    return Life(course, published)


RULES = {"version 0.1": live_with_former_rule, "gate": live_with_gate}


def published_share(
    domain: Domain, gain: float, cadence: tuple[int, int, int], trainings: int, lives: int, seed: int
) -> tuple[float, float, float]:
    """Simulate how often a candidate is published.

    Args:
        domain: how much patients differ.
        gain: true gain of all candidates, Dice.
        cadence: first training, patients between trainings, and patients of a life.
        trainings: number of trainings.
        lives: number of simulated labels.
        seed: seed of the simulation.

    Returns:
        Shares of lives in which a candidate is published with at most 8 patients, with at most 16, and ever.
    """
    first, every, patients = cadence
    rng = np.random.default_rng(seed)
    published = []
    for _ in range(lives):
        differences = domain.draw(rng, trainings, np.full(patients, gain))
        published.append(live_with_gate(differences, first, every, serve_trials=False).published or np.inf)
    counts = np.array(published)
    return float(np.mean(counts <= 8)), float(np.mean(counts <= 16)), float(np.mean(counts < np.inf))


def regret(
    live: Callable[[NDArray[np.float64], int, int], Life],
    domains: Sequence[Domain],
    lives: int,
    seed: int,
    gains: NDArray[np.float64] = GAINS,
) -> float:
    """Simulate the Dice that a rule loses against always serving the better of unadapted model and candidate.

    The first candidate is trained on two patients, and another one after every second patient. The 30 patients who come
    after the first training are counted.

    Args:
        live: the rule, ``live_with_gate`` or ``live_with_former_rule``.
        domains: how much patients differ.
        lives: number of simulated labels for each domain and gain.
        seed: seed of the simulation.
        gains: true gains (gains,), Dice.

    Returns:
        Dice lost for each patient, mean over domains and gains.
    """
    first, rng = 2, np.random.default_rng(seed)
    lost = []
    for domain in domains:
        for gain in gains:
            for _ in range(lives):
                differences = domain.draw(rng, TRAININGS, np.full(first + SERVED_PATIENTS, gain))
                adapted = np.array(live(differences, first, 2).serves[first:]) >= 0
                lost.append(max(0.0, gain) - gain * adapted.mean())
    return float(np.mean(lost))


def withdrawn_share(domain: Domain, gain: float, lives: int, seed: int, harm: float = -0.10) -> float:
    """Simulate how fast an adapter that turns harmful is withdrawn.

    A candidate is trained on 8 patients, and 16 more judge it. Then its gain changes.

    Args:
        domain: how much patients differ.
        gain: true gain at first, Dice.
        lives: number of simulated labels.
        seed: seed of the simulation.
        harm: true gain afterwards, Dice.

    Returns:
        Share of lives in which the unadapted model serves after ten more patients.
    """
    rng, before = np.random.default_rng(seed), 24
    gains = np.r_[np.full(before, gain), np.full(11, harm)]
    return float(np.mean([live_with_gate(domain.draw(rng, 1, gains), 8, 1000).serves[-1] < 0 for _ in range(lives)]))


def _false_shares(name: str, lives: int, seed: int) -> list[float]:
    domain = NO_BETTER[name]
    return [published_share(domain, 0.0, cadence, TRAININGS, lives, seed)[2] for cadence in CADENCES.values()]


def simulate(lives: int, seed: int, console: Console, gain: float = 0.10) -> dict[str, Any]:
    """Run all simulations and print their tables.

    Args:
        lives: number of simulated labels for each share.
        seed: seed of the simulation.
        console: where to print.
        gain: true gain in the table of right claims, Dice.

    Returns:
        The figures.
    """
    table = Table("candidates that are no better, 20 trainings", *CADENCES, title="Ever published")
    false = {}
    with ProcessPoolExecutor() as pool:
        shares_by_domain = list(pool.map(_false_shares, NO_BETTER, repeat(lives), repeat(seed)))
    for name, of_domain in zip(NO_BETTER, shares_by_domain, strict=True):
        false[name] = max(of_domain)
        table.add_row(name, *(f"{share:.3f}" for share in of_domain))
    console.print(table)

    table = Table(f"gain {gain:.2f}, patients .10", "with 8 patients", "by the 16th", title="Published")
    once = published_share(PLAIN, gain, (8, 1, 16), 1, 2 * lives, seed)
    often = published_share(PLAIN, gain, (3, 1, 16), TRAININGS, lives, seed)
    for name, shares in (("trained once, with 8 patients", once), ("trained after each patient", often)):
        table.add_row(name, f"{shares[0]:.3f}", f"{shares[1]:.3f}")
    console.print(table)

    few = max(1, lives // 100)
    lost = {rule: regret(live, (CALM, NOISY), few, seed) for rule, live in RULES.items()}
    table = Table("rule", "Dice lost for each of 30 patients", title="Regret, gains from -.10 to +.30")
    for rule, dice in lost.items():
        table.add_row(rule, f"{dice:.4f}")
    console.print(table)

    table = Table(
        "gain before", "patients .03, slices .10", "patients .07, slices .15", title="Withdrawn within 10 (-.10)"
    )
    withdrawn = {}
    for before in (0.10, 0.20, 0.30):
        withdrawn[before] = [withdrawn_share(domain, before, 4 * few, seed) for domain in (CALM, NOISY)]
        table.add_row(f"{before:.2f}", *(f"{share:.3f}" for share in withdrawn[before]))
    console.print(table)
    return {
        "lives": lives,
        "seed": seed,
        "gain": gain,
        "false_published": max(list(false.values())[:4]),
        "false_published_by_domain": false,
        "published_at_8": once[0],
        "published_at_16": once[1],
        "published_trained_after_each": {"at_8": often[0], "at_16": often[1]},
        "regret": lost["gate"],
        "regret_before": lost["version 0.1"],
        "withdrawn_in_10": min(map(min, withdrawn.values())),
    }
