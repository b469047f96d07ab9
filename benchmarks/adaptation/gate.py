"""Simulate the gate with its own code, and replay real patients.

``python -m benchmarks.adaptation.gate`` lets thousands of labels live: patients arrive, candidates are trained,
cross-fitted, tried and served. It prints the results beside the rule of version 0.1 ("gain > 0 and above its standard
error", judged by a few held-back patients), and writes ``benchmarks/results/gate.json``.

It also replays real streams: the patients of ``benchmarks/results/streams.json``, whose adapted and unadapted Dice
``benchmarks.adaptation.streams`` measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.adaptation.gate_replays import replay_all
from benchmarks.adaptation.gate_simulation import simulate
from benchmarks.page import write_between_marks
from benchmarks.paths import PAGES, RESULTS


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
