"""Stress the server: load, a soak, fuzzing, kills, floods, attacks and decompression bombs, one after the other.

``make bench-trust`` runs all parts on the sample data in less than half an hour, prints the figures, and writes
``benchmarks/results/trust.json``; ``--publish`` also writes them to docs/results/trust.md. It fails if a figure that
must be 0 is not 0. Run it with nothing else on the machine.

* load: sixteen clients click on eight volumes while trainings run (``load/mixed.py``).
* soak: the same for longer; ``--soak 60`` is an hour.
* fuzz: at least 10,000 odd requests and broken files (``fuzz/http_requests.py``, ``fuzz/odd_files.py``), and images
  with changed geometry (``fuzz/displacements.py``).
* kills: servers, trainings, and processes that save labels or adapters are killed (``kill/kills.py``).
* floods: one client sends far too many requests while another user clicks (``load/floods.py``).
* savers: many users save labels of the same images at once (``kill/concurrent_saves.py``).
* attacks: the attacks of ``attack/all_attacks.py``.
* headers: the security headers of every route, for each role (``attack/headers.py``).
* bombs: small files that decompress to a large size; measures the memory of the reader (``fuzz/bombs.py``) and of
  the server that receives them (``fuzz/server_bombs.py``).
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.page import write_between_marks
from benchmarks.paths import PAGES, RESULTS

PARTS = ("load", "soak", "fuzz", "kills", "savers", "floods", "attacks", "headers", "bombs")

COUNTED = (
    "requests", "inputs", "displacement_inputs", "kills", "attacks_tried", "headers_checked", "floods", "bombs",
)  # fmt: skip
"""Figures that count what was tried."""

MUST_BE_0 = (
    "errors_5xx", "dropped", "failures", "strays", "attacks_succeeded", "labels_lost", "adapters_lost",
    "resume_mismatches", "orphans", "displaced", "headers_missing", "floods_refused_others", "bombs_over_bound",
)  # fmt: skip

_FILES, _REQUESTS = 8000, 4000
"""Number of broken files that are read directly, and of odd requests."""

_DISPLACEMENTS = 2400
"""Number of images with changed geometry."""

_FUZZ_SECONDS, _KILL_SECONDS = 480.0, 600.0

console = Console(soft_wrap=True, highlight=False)


def summarise(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Sum the figures of all parts that ran; a figure that no part has measured is None."""

    def total(name: str) -> int | None:
        values = [part[name] for part in parts.values() if name in part]
        return sum(values) if values else None

    names = (*COUNTED, *MUST_BE_0, "unfinished")
    deliberate: dict[str, int] = {}
    for part in parts.values():
        for code, count in part.get("deliberate", {}).items():
            deliberate[code] = deliberate.get(code, 0) + count
    return {
        **{name: total(name) for name in names},
        "deliberate": deliberate,
        "p95_ms": {name: {kind: row["p95"] for kind, row in part["ms"].items()}
                   for name, part in parts.items() if name in ("load", "soak")},
        "memory": {name: part["memory"] for name, part in parts.items() if "memory" in part},
    }  # fmt: skip


def faults(figures: dict[str, Any]) -> list[str]:
    """Return a sentence for each requirement that is not met."""
    wrong = [f"{name} is {figures[name]}, not 0" for name in MUST_BE_0 if figures[name]]
    wrong += [f"memory was not bounded in {name}" for name, row in figures["memory"].items() if not row["bounded"]]
    return wrong


def fuzz(folder: Path, seed: int, share: float) -> dict[str, Any]:
    """Fuzz the readers and a server; return the figures of each, and their sums."""
    from stress.fuzz.displacements import fuzz_displacements
    from stress.fuzz.http_requests import fuzz_http
    from stress.fuzz.odd_files import fuzz_files

    files = fuzz_files(round(share * _FILES), seed, share * _FUZZ_SECONDS / 3)
    geometry = fuzz_displacements(round(share * _DISPLACEMENTS), seed)
    requests = fuzz_http(folder, round(share * _REQUESTS), seed, share * 2 * _FUZZ_SECONDS / 3)
    return {
        **{key: requests[key] for key in ("requests", "errors_5xx", "dropped", "deliberate")},
        "inputs": files["inputs"] + geometry["displacement_inputs"] + requests["requests"],
        "displacement_inputs": geometry["displacement_inputs"],
        "displaced": geometry["displaced"],
        "failures": files["failures"] + geometry["failures"] + requests["failures"] + (not requests["alive"]),
        "strays": files["strays"] + len(requests["strays"]),
        "files": files,
        "geometry": geometry,
        "http": requests,
    }


def bombs(folder: Path) -> dict[str, Any]:
    """Read decompression bombs and send them to a server; return the figures of both, and their sums."""
    from stress.fuzz.bombs import read_bombs
    from stress.fuzz.server_bombs import send_bombs

    read, sent = read_bombs(), send_bombs(folder)
    return {
        **{key: read[key] + sent[key] for key in ("bombs", "bombs_over_bound")},
        "read": read,
        "sent": sent,
    }


def main(
    minutes: Annotated[float, typer.Option(help="Duration of the load, in minutes.")] = 3,
    soak: Annotated[float, typer.Option(help="Duration of the soak, in minutes.")] = 3,
    only: Annotated[str, typer.Option(help=f"Parts to run, separated by commas: {', '.join(PARTS)}.")] = "",
    share: Annotated[float, typer.Option(help="Fraction of the usual number of odd inputs and kills.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn at random.")] = 0,
    out: Annotated[Path, typer.Option(help="The JSON file. Results of parts that do not run are kept.")] = RESULTS
    / "trust.json",
    publish: Annotated[bool, typer.Option(help="Write the figures to docs/results/trust.md.")] = False,
) -> None:
    """Run the parts, print the figures and write them."""
    from stress.attack.headers import check_headers
    from stress.attack.run_attacks import try_attacks
    from stress.kill.concurrent_saves import save_at_once
    from stress.kill.kills import kill_all
    from stress.load.floods import flood
    from stress.load.mixed import load

    selected = [name.strip() for name in only.split(",")] if only else list(PARTS)
    if unknown := sorted(set(selected) - set(PARTS)):
        raise typer.BadParameter(f"Unknown part: {', '.join(unknown)}. Known parts: {', '.join(PARTS)}.")
    run_part: dict[str, Callable[[Path], dict[str, Any]]] = {
        "load": lambda folder: load(folder, 60 * minutes, seed),
        "soak": lambda folder: load(folder, 60 * soak, seed + 1),
        "fuzz": lambda folder: fuzz(folder, seed, share),
        "kills": lambda folder: kill_all(folder, seed, share * _KILL_SECONDS, share),
        "savers": lambda folder: save_at_once(folder, seed),
        "floods": lambda folder: flood(folder, seed, share),
        "attacks": try_attacks,
        "headers": check_headers,
        "bombs": bombs,
    }
    before: dict[str, Any] = json.loads(out.read_text())["parts"] if only and out.exists() else {}
    parts = {name: before[name] for name in PARTS if name in before}
    for name in PARTS:
        if name not in selected:
            continue
        console.print(f"[bold]{name}[/] ...")
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"trust-{name}-") as folder:
            result = run_part[name](Path(folder) / "site")
        parts[name] = {**result, "took_seconds": round(time.monotonic() - start)}
        figures = {**summarise(parts), "cpus": os.cpu_count(), "seed": seed, "parts": parts}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(figures, indent=1))
    _print(figures)
    if publish:
        write_between_marks(page_lines(figures), PAGES / "trust.md", "bench-trust")
    if wrong := faults(figures):
        console.print("[bold red]" + "; ".join(wrong) + ".[/]")
        raise typer.Exit(1)


def page_lines(figures: dict[str, Any]) -> list[str]:
    """Format the figures as Markdown tables."""
    lines = ["| what | figure |", "| --- | --- |"]
    lines += [f"| {what} | {figure} |" for what, figure in _rows(figures)]
    lines += ["", "| reply | p95 under load | p95 in the soak |", "| --- | --- | --- |"]
    times = figures["p95_ms"]
    for kind in sorted({kind for rows in times.values() for kind in rows}):
        shown = (f"{times[part][kind]:,.0f} ms" if kind in times.get(part, {}) else "" for part in ("load", "soak"))
        lines.append(f"| {kind} | {' | '.join(shown)} |")
    return lines


def _rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    deliberate = ", ".join(f"{code}: {count}" for code, count in figures["deliberate"].items() if count) or "none"
    rows = [
        (name.replace("_", " "), f"{figures[name]:,}") for name in (*COUNTED, *MUST_BE_0) if figures[name] is not None
    ]
    rows.append(("reported faults (502, 503, 504, 507)", deliberate))
    for name, row in figures["memory"].items():
        peaks = f"{row['server_middle_peak_mb']:,.0f} MB, then {row['server_last_peak_mb']:,.0f} MB"
        rows.append((f"peak memory of the server, {name}, second and last third", peaks))
    return rows


def _print(figures: dict[str, Any]) -> None:
    table = Table("what", "figure")
    for row in _rows(figures):
        table.add_row(*row)
    console.print(table)
    if figures["p95_ms"]:
        times = Table("reply", *(f"p95, {part}, ms" for part in figures["p95_ms"]))
        for kind in sorted({kind for rows in figures["p95_ms"].values() for kind in rows}):
            times.add_row(kind, *(f"{rows.get(kind, 0):,.0f}" for rows in figures["p95_ms"].values()))
        console.print(times)


if __name__ == "__main__":
    typer.run(main)
