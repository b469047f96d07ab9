"""Convert the runs of ``benchmarks/fewshot/few_shot.py`` to tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.fewshot.cells import EXPERIMENTS

Run = Mapping[str, Any]
_MEASURES = ("dice", "hd95", "surface")
_COSTS = ("parameters", "seconds", "memory_mib")


def summarise(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Summarise each experiment, arm and number of shots over seeds, in total and for each organ.

    Only seeds for which every organ of the experiment was run are included. Dice and distances are means over patients,
    then organs; ``_std`` is the standard deviation over seeds. An empty mask has no distance: it is excluded from these
    means, and counted in ``missed``, a share of all masks. If a method does not apply, ``why_not`` gives the reason.
    """
    rows = []
    for experiment in dict.fromkeys(run["experiment"] for run in runs):
        experiment_runs = [run for run in runs if run["experiment"] == experiment]
        organs = list(dict.fromkeys(run["organ"] for run in experiment_runs))
        for arm, shots in dict.fromkeys((run["arm"], run["shots"]) for run in experiment_runs):
            arm_runs = [run for run in experiment_runs if (run["arm"], run["shots"]) == (arm, shots)]
            by_seed = [[run for run in arm_runs if run["seed"] == seed] for seed in {run["seed"] for run in arm_runs}]
            complete = [run for seed_runs in by_seed if len(seed_runs) == len(organs) for run in seed_runs]
            if not complete:
                continue
            row = {"experiment": experiment, "arm": arm, "shots": shots}
            if "why_not" in complete[0]:
                rows.append({**row, "why_not": complete[0]["why_not"]})
                continue
            rows.append(
                {
                    **row,
                    **_over_seeds(complete),
                    "by_organ": {organ: _over_seeds([r for r in complete if r["organ"] == organ]) for organ in organs},
                }
            )
    return rows


def _over_seeds(runs: Sequence[Run]) -> dict[str, Any]:
    seeds = sorted({run["seed"] for run in runs})
    values: dict[str, Any] = {"seeds": len(seeds)}
    for measure in _MEASURES:
        means = [_mean([_mean(_known(run, measure)) for run in runs if run["seed"] == seed]) for seed in seeds]
        known_values = [mean for mean in means if mean is not None]
        values[measure] = _mean(known_values)
        values[f"{measure}_std"] = float(np.std(known_values)) if known_values else None
    distances = [score["hd95"] for run in runs for score in run["scores"]]
    values["missed"] = distances.count(None) / max(1, len(distances))
    for cost in _COSTS:
        values[cost] = _mean([run.get(cost) for run in runs])
    values["epochs"] = _mean([epochs for run in runs for epochs in run.get("epochs", [])])
    return values


def _known(run: Run, measure: str) -> list[float]:
    return [score[measure] for score in run["scores"] if score[measure] is not None]


def _mean(values: Sequence[float | None]) -> float | None:
    known_values = [value for value in values if value is not None]
    return float(np.mean(known_values)) if known_values else None


def tables(summary: Sequence[Mapping[str, Any]]) -> list[str]:
    """Format a Markdown table for each experiment, of its arms by shots, or of its organs if nothing is trained."""
    lines: list[str] = []
    for name, experiment in EXPERIMENTS.items():
        rows = [row for row in summary if row["experiment"] == name]
        if rows:
            organs = next((list(row["by_organ"]) for row in rows if "by_organ" in row), [])
            lines += [f"**{experiment.title}** ({', '.join(organs)})", ""]
            shots = [k for k in experiment.shots if any(row["shots"] == k for row in rows)]
            lines += [*(_by_arm(rows, shots or experiment.shots) if experiment.shots else _by_organ(rows[0])), ""]
    return lines[:-1]


def _by_arm(rows: Sequence[Mapping[str, Any]], shots: Sequence[int]) -> list[str]:
    each = " / ".join(map(str, shots))
    headings = [
        "arm", *(f"Dice, {k} shot{'s' * (k > 1)}" for k in shots), "seeds", f"HD95, mm ({each})", "surface, mm",
        "empty", "parameters", "epochs", "seconds", "MiB",
    ]  # fmt: skip
    lines = _head(headings)
    for arm in dict.fromkeys(row["arm"] for row in rows):
        by_shots = {row["shots"]: row for row in rows if row["arm"] == arm}
        values = [by_shots.get(k, by_shots.get(0, {})) for k in shots]  # The unadapted model has 0 shots.
        if any("why_not" in row for row in values):
            lines.append(_line([arm, *["n/a"] * (len(headings) - 1)]))
            continue
        cells = [
            arm,
            *(_spread(row) for row in values),
            *(
                " / ".join(_number(row.get(key), form) for row in values)
                for key, form in (
                    ("seeds", "d"), ("hd95", ".1f"), ("surface", ".1f"), ("missed", ".0%"),
                )
            ),
            _number(next((row["parameters"] for row in values if row), None), ",.0f"),
            *(
                " / ".join(_number(row.get(key), ",.0f") for row in values)
                for key in ("epochs", "seconds", "memory_mib")
            ),
        ]  # fmt: skip
        lines.append(_line(cells))
    return lines


def _by_organ(row: Mapping[str, Any]) -> list[str]:
    lines = _head(["organ", "Dice", "HD95, mm", "surface, mm"])
    for organ, values in {**row["by_organ"], "mean": row}.items():
        lines.append(
            _line(
                [
                    organ,
                    _number(values["dice"], ".3f"),
                    _number(values["hd95"], ".1f"),
                    _number(values["surface"], ".1f"),
                ]
            )
        )
    return lines


def _head(headings: Sequence[str]) -> list[str]:
    return [_line(headings), _line(["---"] * len(headings))]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(row: Mapping[str, Any]) -> str:
    """Format the Dice, with its standard deviation if there are several seeds."""
    if not row:
        return "–"
    return f"{row['dice']:.3f}" + (f" ± {row['dice_std']:.3f}" if row["seeds"] > 1 else "")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
