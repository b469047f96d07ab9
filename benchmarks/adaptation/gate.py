"""Simulate the gate with its own code: wrong claims, right claims, Dice lost by serving the wrong model.

``python -m benchmarks.adaptation.gate`` lets thousands of labels live: patients arrive, candidates are trained,
cross-fitted, tried and served. It prints the results beside the rule of version 0.1 ("gain > 0 and above its standard
error", judged by a few held-back patients), and writes ``benchmarks/results/gate.json``.

It also replays real streams: the patients of ``benchmarks/results/streams.json``, whose adapted and unadapted Dice
``benchmarks.adaptation.streams`` measured, arrive in random orders.

A simulated patient has 12 slices. The difference of Dice of a slice is the gain, plus a deviation of the patient, plus
one of the slice; slices that follow each other have a correlation of 0.7, and so have the deviations of two candidates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.signal import lfilter

from baps.evaluation.gate import Gate
from benchmarks.page import write_between_marks
from benchmarks.paths import PAGES, RESULTS

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


@dataclass(frozen=True)
class Replay:
    """What the gate makes of real patients.

    Attributes:
        patients: number of test patients.
        gain: their mean gain, Dice.
        served: share of the patients after the first training whom the adapter served.
        published: share of the orders in which the adapter was ever published.
        regret: Dice lost for each of these patients, see ``regret``.
        regret_before: the same with the rule of version 0.1.
    """

    patients: int
    gain: float
    served: float
    published: float
    regret: float
    regret_before: float


@dataclass(frozen=True)
class RealStream:
    """Real differences between the Dice of an adapter and of the unadapted model.

    Attributes:
        training: cross-fitted differences of the patients that it was trained on (patients,).
        test: differences of other patients (patients,).
    """

    training: NDArray[np.float64]
    test: NDArray[np.float64]

    def draw(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw the order in which patients come: those of the training, and then others, with replacement.

        Args:
            rng: the generator.

        Returns:
            Differences (1, patients, 1).
        """
        return np.concatenate([rng.permutation(self.training), rng.choice(self.test, SERVED_PATIENTS)])[None, :, None]


def read_streams(file: Path) -> dict[str, RealStream]:
    """Read real streams.

    Args:
        file: results of ``benchmarks.adaptation.streams``.

    Returns:
        The streams by domain.
    """
    rows = json.loads(file.read_text())["domains"]
    return {name: RealStream(np.array(row["cross_fitted"]), np.array(row["test"])) for name, row in rows.items()}


def replay(stream: RealStream, orders: int, seed: int) -> Replay:
    """Let real patients arrive in random orders.

    Args:
        stream: the patients.
        orders: number of orders.
        seed: seed of the orders.

    Returns:
        The result.
    """
    first, rng, gain = len(stream.training), np.random.default_rng(seed), float(stream.test.mean())
    served: list[float] = []
    published: list[bool] = []
    lost: dict[str, list[float]] = {rule: [] for rule in RULES}
    for _ in range(orders):
        drawn = stream.draw(rng)
        for rule, live in RULES.items():
            life = live(drawn, first, 1000)
            share = float((np.array(life.serves[first:]) >= 0).mean())
            lost[rule].append(max(0.0, gain) - gain * share)
            if rule == "gate":
                served.append(share)
                published.append(life.published is not None)
    means = {rule: float(np.mean(values)) for rule, values in lost.items()}
    shares = float(np.mean(served)), float(np.mean(published))
    return Replay(len(stream.test), gain, *shares, means["gate"], means["version 0.1"])


def replay_null(streams: Mapping[str, RealStream], orders: int, seed: int) -> float:
    """Replay real patients whose adapted and unadapted Dice is exchanged at random, so that no candidate is better.

    Args:
        streams: the patients by domain.
        orders: number of orders of each domain.
        seed: seed of the orders.

    Returns:
        Largest share of the orders of a domain in which something was published.
    """
    shares = []
    for stream in streams.values():
        rng = np.random.default_rng(seed)
        published = []
        for _ in range(orders):
            drawn = stream.draw(rng)
            drawn *= rng.choice((-1.0, 1.0), drawn.shape)
            life = live_with_gate(drawn, len(stream.training), 1000, serve_trials=False)
            published.append(life.published is not None)
        shares.append(float(np.mean(published)))
    return max(shares)


def replay_all(file: Path, orders: int, seed: int, console: Console) -> dict[str, Any]:
    """Replay all real streams and print their table.

    Args:
        file: results of ``benchmarks.adaptation.streams``.
        orders: number of orders of each domain.
        seed: seed of the orders.
        console: where to print.

    Returns:
        The figures.
    """
    streams = read_streams(file)
    results = {domain: replay(stream, orders, seed) for domain, stream in streams.items()}
    table = Table(
        "domain", "patients", "gain", "served", "published", "Dice lost", "version 0.1", title="Real patients"
    )
    for domain, result in results.items():
        shares = f"{result.served:.2f}", f"{result.published:.2f}"
        lost = f"{result.regret:.4f}", f"{result.regret_before:.4f}"
        table.add_row(domain, str(result.patients), f"{result.gain:+.3f}", *shares, *lost)
    console.print(table)
    null = replay_null(streams, orders, seed)
    console.print(
        f"Adapted and unadapted exchanged at random: published in at most {null:.3f} of the orders of a domain."
    )
    return {
        "replays": {domain: asdict(result) for domain, result in results.items()},
        "replay_regret": float(np.mean([result.regret for result in results.values()])),
        "replay_regret_before": float(np.mean([result.regret_before for result in results.values()])),
        "replay_false_published": null,
    }


def page(results: Mapping[str, Any], streams: Mapping[str, Any]) -> list[str]:
    """Make the tables of the documentation.

    Args:
        results: the figures, as in ``gate.json``.
        streams: results of ``benchmarks.adaptation.streams``.

    Returns:
        The lines.
    """
    lines = [
        f"Seed {results['seed']}, {results['lives']:,} labels for each share.",
        "",
        "| nothing is better, 20 trainings | ever published |",
        "| --- | --- |",
        *(f"| {name} | {share:.3f} |" for name, share in results["false_published_by_domain"].items()),
        "",
        f"| true gain {results['gain']:+.2f}, standard deviation over patients .10 | with 8 patients | by the 16th |",
        "| --- | --- | --- |",
        f"| trained once, with 8 patients | {results['published_at_8']:.3f} | {results['published_at_16']:.3f} |",
        f"| trained after each patient | {results['published_trained_after_each']['at_8']:.3f} | "
        f"{results['published_trained_after_each']['at_16']:.3f} |",
        "",
        "| Dice lost for each of 30 patients, gains from -.10 to +.30 | simulated | real patients |",
        "| --- | --- | --- |",
        f"| version 0.1 | {results['regret_before']:.4f} | {results['replay_regret_before']:.4f} |",
        f"| gate | {results['regret']:.4f} | {results['replay_regret']:.4f} |",
        "",
        "A version whose gain turns to -.10 is withdrawn within ten patients in at least "
        f"{results['withdrawn_in_10']:.3f} of the labels.",
        "With adapted and unadapted Dice of real patients exchanged at random, something is published in at most "
        f"{results['replay_false_published']:.3f} of a domain's orders.",
        "",
        "## Real patients",
        "",
        "`python -m benchmarks.adaptation.streams` adapts the bundled model as `baps adapt` does (at most "
        f"{streams['max_images']:,} images, seed {streams['seed']}) and scores test patients from one click; ± is the "
        "standard deviation over them. The last columns are replays: the share of later patients whom the adapter "
        "served, and the share of orders in which it was ever published.",
        "",
        "| images | after the training | unadapted | adapted | gain ± | lost more than .05 | images asked | served | "
        "published |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in streams["domains"].items():
        replayed = results["replays"][name]
        lines.append(
            f"| {name} | {row['sentence']} | {row['test_before']:.3f} | {row['test_after']:.3f} | "
            f"{row['test_after'] - row['test_before']:+.3f} ± {row['test_sd']:.3f} | "
            f"{row['test_worse']} of {len(row['test'])} | {row['black_box_images']:,} | {replayed['served']:.2f} | "
            f"{replayed['published']:.2f} |"
        )
    return lines


RULES = {"version 0.1": live_with_former_rule, "gate": live_with_gate}


def main(
    lives: Annotated[int, typer.Option(help="Simulated labels for each share.")] = 4000,
    seed: Annotated[int, typer.Option(help="Seed of the simulation.")] = 0,
    gain: Annotated[float, typer.Option(help="True gain in the table of right claims.")] = 0.10,
    out: Annotated[Path, typer.Option(help="File of the results.")] = RESULTS / "gate.json",
) -> None:
    """Simulate the gate, print the tables and write the results."""
    console = Console()
    results = {
        **simulate(lives, seed, console, gain),
        **replay_all(RESULTS / "streams.json", lives // 20, seed, console),
    }
    out.write_text(json.dumps(results, indent=1))
    if out.parent == RESULTS:
        write_between_marks(
            page(results, json.loads((RESULTS / "streams.json").read_text())), PAGES / "evidence.md", "bench-gate"
        )


if __name__ == "__main__":
    typer.run(main)
