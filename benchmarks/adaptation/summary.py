"""Convert the runs of ``benchmarks/adaptation/adapt.py`` to tables and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from baps.evaluation.evidence import HARMFUL_LOSS
from benchmarks.adaptation.arms import EVERYWHERE

Run = Mapping[str, Any]

PARTS = {
    "nothing": "zero_shot",
    "zoom": "zoom",
    "visual prompt": "tone",
    "head": "head_alone",
    "zoom + visual prompt": "zoom_and_tone",
    "zoom + head": "zoom_and_head",
    "visual prompt + head": "tone_and_head",
    "all (default)": "default",
}
"""The arm of each set of parts."""

_DRAWN = ("cma_es", "spsa_gc_published", "spsa_gc_fixed", "tone", "default", "zoom_and_white_box")


def summarise(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Summarise each domain and arm over seeds.

    ``gain`` is relative to zero-shot on the same test patients with the same clicks, ``gain_std`` its sample standard
    deviation over seeds and ``gain_std_patients`` over test patients (mean of the seeds), each None from one value.
    ``lost`` counts the test patients whose mean over seeds is lower by more than .05. ``images_to_90`` is the
    number of images after which an arm first reaches nine tenths of the best gain of any arm of its domain with at most
    4,000 black-box images, on the watched test slices; None if it never does. ``white_box_share`` is its gain as a
    share of the gain of the same zoom and decoder trained with exact gradients. ``rejected`` lists the Dice of
    candidates that were rejected; the row then counts the unadapted model.
    """
    rows = []
    for domain in dict.fromkeys(run["domain"] for run in runs):
        domain_runs = [run for run in runs if run["domain"] == domain]
        unadapted = {run["seed"]: np.array(run["by_patient"]) for run in domain_runs if run["arm"] == "zero_shot"}
        domain_runs = [run for run in domain_runs if run["seed"] in unadapted]
        bound = [_gain(run, unadapted).mean() for run in domain_runs if run["arm"] == "zoom_and_white_box"]
        target = _target(domain_runs)
        for arm in dict.fromkeys(run["arm"] for run in domain_runs):
            arm_runs = [run for run in domain_runs if run["arm"] == arm]
            gains = [_gain(run, unadapted) for run in arm_runs]
            means = [float(gain.mean()) for gain in gains]
            reached = [images for run in arm_runs if (images := _reached(run["curve"], target)) is not None]
            rows.append(
                {
                    "domain": domain,
                    "arm": arm,
                    "seeds": len(arm_runs),
                    "test_patients": len(gains[0]),
                    "dice": float(np.mean([np.mean(run["by_patient"]) for run in arm_runs])),
                    "gain": float(np.mean(means)),
                    "gain_std": _sample_std(means),
                    "gain_std_patients": _sample_std(np.mean(gains, axis=0)),
                    "lost": int((np.mean(gains, axis=0) < -HARMFUL_LOSS).sum()),
                    "images": float(np.mean([run["black_box_images"] for run in arm_runs])),
                    "images_to_90": float(np.median(reached)) if len(reached) * 2 > len(arm_runs) else None,
                    "white_box_share": float(np.mean(means) / np.mean(bound)) if bound and np.mean(bound) > 0 else None,
                    "seconds": float(np.mean([run["seconds"] for run in arm_runs])),
                    "rejected": [run["rejected"] for run in arm_runs if "rejected" in run],
                    "corrected": _corrected(arm_runs),
                }
            )
    return rows


def _gain(run: Run, unadapted: Mapping[int, NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.array(run["by_patient"]) - unadapted[run["seed"]]


def _sample_std(values: Sequence[float] | NDArray[np.float64]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _corrected(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Average the results of ``score_corrections`` over the seeds that have them, by the kind of first prompt."""
    measured = [run["corrected"] for run in runs if run.get("corrected")]
    return {
        kind: {
            name: np.mean([one[kind][name] for one in measured], axis=0).tolist()
            for name in ("by_clicks", "noc_85", "noc_85_failures")
        }
        for kind in (measured[0] if measured else {})
    }


def _target(runs: Sequence[Run]) -> float:
    """Compute nine tenths of the way from the first to the best watched Dice of a black-box arm."""
    curves = [
        run["curve"] for run in runs if run["curve"] and run["max_images"] <= 4000 and "white_box" not in run["arm"]
    ]
    if not curves:
        return float("inf")
    start = float(np.mean([curve[0][1] for curve in curves]))
    by_arm: dict[str, list[float]] = {}
    for run in runs:
        if run["curve"] in curves:
            by_arm.setdefault(run["arm"], []).append(run["curve"][-1][1])
    return start + 0.9 * (max(float(np.mean(values)) for values in by_arm.values()) - start)


def _reached(curve: Sequence[tuple[int, float]], target: float) -> int | None:
    return next((images for images, dice in curve if dice >= target), None)


def all_tables(summary: Sequence[Mapping[str, Any]]) -> list[str]:
    """Format Markdown tables of the parts, of each domain with many arms, of the other domains, and of corrective
    clicks."""
    lines, others, core_rows = [], [], []
    for domain in dict.fromkeys(row["domain"] for row in summary):
        rows = [row for row in summary if row["domain"] == domain]
        if {row["arm"] for row in rows} <= set(EVERYWHERE):
            others.append({row["arm"]: row for row in rows})
        else:
            lines += [*_domain_table(rows), ""]
            core_rows += rows
    return [*_parts_table(core_rows), *lines, *_other_domains_table(others), "", *_corrections_table(core_rows)]


def _parts_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Format the Dice of every set of parts that every core domain has, and the mean gain and images."""
    by_arm = {(row["arm"], row["domain"]): row for row in rows}
    domains = list(dict.fromkeys(row["domain"] for row in rows))
    complete = {name: arm for name, arm in PARTS.items() if all((arm, domain) in by_arm for domain in domains)}
    if not domains or len(complete) < 2:
        return []
    lines = [
        "What each part brings (Dice; a visual prompt beside a head is trained only where it earns its place):",
        "",
        f"| parts | {' | '.join(domains)} | mean gain | mean images |",
        "| --- |" + " --- |" * (len(domains) + 2),
    ]
    for name, arm in complete.items():
        arm_rows = [by_arm[arm, domain] for domain in domains]
        dice = " | ".join(f"{row['dice']:.3f}" for row in arm_rows)
        gain, images = (np.mean([row[key] for row in arm_rows]) for key in ("gain", "images"))
        lines.append(f"| {name} | {dice} | {gain:+.3f} | {images:,.0f} |")
    return [*lines, ""]


def _plus_minus(value: float, spread: float | None) -> str:
    return f"{value:+.3f}" if spread is None else f"{value:+.3f} ± {spread:.3f}"


def _domain_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        f"**{rows[0]['domain']}** ({rows[0]['test_patients']} test patients)",
        "",
        "| arm | seeds | Dice | gain ± over seeds | ± over patients | patients lost | images | images to 90 % "
        "| of white box | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(rows, key=lambda row: -row["gain"]):
        reached = "" if row["images_to_90"] is None else f"{row['images_to_90']:,.0f}"
        share = "" if row["white_box_share"] is None else f"{100 * row['white_box_share']:.0f} %"
        lines.append(
            f"| {row['arm']}{_rejected_dice(row)} | {row['seeds']} | {row['dice']:.3f} | "
            f"{_plus_minus(row['gain'], row['gain_std'])} | {_spread(row)} | {row['lost']} | "
            f"{row['images']:,.0f} | {reached} | {share} | {row['seconds']:.0f} |"
        )
    return lines


def _spread(row: Mapping[str, Any]) -> str:
    return "" if row["gain_std_patients"] is None else f"{row['gain_std_patients']:.3f}"


def _other_domains_table(domains: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[str]:
    lines = [
        "Other domains (those with few images only check the transfer):",
        "",
        "| domain | test patients | lost | seeds | unadapted | default | gain ± over patients | images | white box "
        "| share of it |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arms in domains:
        if "default" not in arms:
            continue
        unadapted, row, bound = arms["zero_shot"], arms["default"], arms.get("zoom_and_white_box")
        white, gain = f"{bound['dice']:.3f}" if bound else "", _plus_minus(row["gain"], row["gain_std_patients"])
        share = "" if row["white_box_share"] is None else f"{100 * row['white_box_share']:.0f} %"
        lines.append(
            f"| {row['domain']} | {row['test_patients']} | {row['lost']} | {row['seeds']} | {unadapted['dice']:.3f} | "
            f"{row['dice']:.3f}{_rejected_dice(row)} | {gain} | {row['images']:,.0f} | {white} | {share} |"
        )
    return lines


def _rejected_dice(row: Mapping[str, Any]) -> str:
    """Format the Dice of rejected candidates on the test patients."""
    dice = ", ".join(f"{value:.3f}" for value in row["rejected"])
    return f" (rejected: {dice})" if dice else ""


def _corrections_table(summary: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "Corrective clicks (Dice after this many prompts; prompts until Dice 0.85, ten where it is never reached):",
        "",
        "| domain | arm | first prompt | 1 | 2 | 3 | 5 | 10 | prompts to .85 | not reached |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in summary:
        for kind, values in row["corrected"].items():
            dice = " | ".join(f"{values['by_clicks'][n - 1]:.3f}" for n in (1, 2, 3, 5, 10))
            needed = f"{values['noc_85']:.1f} | {100 * values['noc_85_failures']:.0f} %"
            lines.append(f"| {row['domain']} | {row['arm']} | {kind} | {dice} | {needed} |")
    return lines


def headline(summary: Sequence[Mapping[str, Any]]) -> list[str]:
    """Format a Markdown table of the default against the unadapted model, for domains with corrective clicks."""
    lines = [
        "| images | test patients | lost more than .05 | one click: unadapted | adapted | gain (± over patients) | "
        "five clicks: unadapted | adapted | clicks to Dice .85: unadapted | adapted | images sent |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    by_arm = {(row["domain"], row["arm"]): row for row in summary}
    for row in summary:
        unadapted = by_arm.get((row["domain"], "zero_shot"))
        if row["arm"] != "default" or unadapted is None or not row["corrected"]:
            continue
        before, after = unadapted["corrected"]["click"], row["corrected"]["click"]
        lines.append(
            f"| {row['domain']} | {row['test_patients']} | {row['lost']} | {unadapted['dice']:.3f} | "
            f"{row['dice']:.3f} | {_plus_minus(row['gain'], row['gain_std_patients'])} | "
            f"{before['by_clicks'][4]:.3f} | "
            f"{after['by_clicks'][4]:.3f} | {before['noc_85']:.1f} | {after['noc_85']:.1f} | {row['images']:,.0f} |"
        )
    return lines


def draw(runs: Sequence[Run], file: Path) -> None:
    """Plot the Dice on the watched test slices against black-box images, mean and spread over seeds, one panel per
    domain."""
    domains = [d for d in dict.fromkeys(run["domain"] for run in runs) if len(_curves(runs, d)) > 2]
    if not domains:
        return
    figure, axes = plt.subplots(1, len(domains), figsize=(4.2 * len(domains), 3.6), squeeze=False)
    for axis, domain in zip(axes[0], domains, strict=True):
        for arm, curves in _curves(runs, domain).items():
            images = np.mean([[point[0] for point in curve] for curve in curves], axis=0)
            dice = np.array([[point[1] for point in curve] for curve in curves])
            if "white_box" in arm:  # It queries nothing: a bound instead of a curve over images.
                axis.axhline(dice[:, -1].mean(), color="gray", linestyle="--", label=arm)
                continue
            axis.plot(images, dice.mean(0), marker=".", label=arm)
            axis.fill_between(images, dice.mean(0) - dice.std(0), dice.mean(0) + dice.std(0), alpha=0.15)
        axis.set_title(domain, fontsize=10)
        axis.set_xlabel("black-box images")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("Dice on test patients")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _curves(runs: Sequence[Run], domain: str) -> dict[str, list[Any]]:
    curves_by_arm: dict[str, list[Any]] = {}
    for run in runs:
        if run["domain"] == domain and run["arm"] in _DRAWN and run["curve"]:
            curves_by_arm.setdefault(run["arm"], []).append(run["curve"])
    return {arm: [c for c in curves if len(c) == len(curves[0])] for arm, curves in curves_by_arm.items()}
