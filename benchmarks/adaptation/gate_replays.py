"""Let the patients of ``benchmarks/results/streams.json`` arrive in random orders, and let the gate decide."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.adaptation.gate_simulation import RULES, SERVED_PATIENTS, live_with_gate


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
