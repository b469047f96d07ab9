"""The pages about what people did, for admins: the audit file with filters, and usage by week."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from fastapi.responses import Response

from baps.errors import BapsError, InputError
from baps.server.access_policy import POLICIES
from baps.server.request_context import context_of
from baps.server.web.layout import render
from baps.server.web.plots import Axes, Tick
from baps.server.web.state import state_of
from baps.site.audit_search import AuditFilter, AuditPage, Week, search

_COMMANDS = (
    "adapt to labels",
    "add an adapter",
    "change the state of an adapter",
    "export a label",
    "import a label",
    "prune a label",
    "remove a label",
    "remove old audit lines",
)
"""Actions of commands and of the server itself that no request has."""

ACTIONS = tuple(sorted({policy.action for policy in POLICIES if policy.audited} | {*_COMMANDS, "ask without leave"}))
"""Actions that the audit file may have lines of."""

KINDS = {"clicks": "Clicks", "labels": "Labels saved", "trainings": "Trainings"}
"""Titles of the kinds of usage."""


@dataclass(frozen=True)
class BarPlot:
    """Numbers by week.

    Attributes:
        axes: The axes.
        bars: Left end, top, width and height of each bar, and its text.
    """

    axes: Axes
    bars: tuple[tuple[float, float, float, float, str], ...]


def audit_page(
    request: Request, user: str = "", action: str = "", image_name: str = "", day: str = "", start: str = ""
) -> Response:
    """Show the lines of the audit file that match, newest first.

    Raises:
        BapsError: If the file cannot be read.
    """
    state, problem = state_of(request), ""
    # Not ``image``, whose values must be valid names: the name is only hashed.
    context_of(request).image = image_name
    found = AuditPage((), "", None)
    try:
        image = state.audit.hashed(image_name) if image_name else ""
        found = search(state.audit, AuditFilter(user, action, image, _read_day(day)), start)
    except InputError as error:
        problem = str(error)
    except OSError as error:
        raise BapsError(f"The audit file cannot be read ({error.strerror}).") from error
    filters = {"user": user, "action": action, "image_name": image_name, "day": day}
    query = {name: value for name, value in filters.items() if value}
    return render(
        request,
        "web/audit.html",
        400 if problem else 200,
        found=found,
        filters=filters,
        actions=ACTIONS,
        problem=problem,
        check=state.audit_check.get(wait=0.05),
        first=not start,
        newest=urlencode(query),
        older=urlencode({**query, "start": found.next}),
    )


def usage_page(request: Request) -> Response:
    """Show how many clicks, labels and trainings there were in each week."""
    usage = state_of(request).usage.get(wait=0.05)
    plots = {kind: plot_weeks(usage.value, kind) for kind in KINDS} if usage.value else {}
    return render(request, "web/usage.html", usage=usage, plots=plots, kinds=KINDS)


ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/web/people/audit", audit_page),
    ("GET", "/web/people/usage", usage_page),
]


def plot_weeks(weeks: list[Week], kind: str, width: float = 420, height: float = 150) -> BarPlot:
    """Place the numbers of each week in a plot.

    Args:
        weeks: The weeks, oldest first.
        kind: Kind of usage.
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.

    Returns:
        The plot.
    """
    counts: list[int] = [week.counts.get(kind, 0) for week in weeks]
    top_value = _round_up(max(counts, default=0))
    left, right, top, bottom = 44.0, width - 8, 10.0, height - 30
    step = (right - left) / max(len(weeks), 1)

    def y(count: float) -> float:
        return round(bottom - (bottom - top) * count / top_value, 1)

    every = max(1, -(-len(weeks) // 6))
    shown = [n for n in range(len(weeks)) if (len(weeks) - 1 - n) % every == 0]
    axes = Axes(
        width,
        height,
        left,
        right,
        top,
        bottom,
        tuple(Tick(round(left + (n + 0.5) * step, 1), f"{weeks[n].monday:%d %b}") for n in shown),
        tuple(Tick(y(value), f"{value:,}") for value in _ticks(top_value)),
    )
    bars = tuple(
        (
            round(left + (n + 0.15) * step, 1),
            y(count),
            round(0.7 * step, 1),
            round(bottom - y(count), 1),
            f"{weeks[n].monday}: {count:,}",
        )
        for n, count in enumerate(counts)
    )
    return BarPlot(axes, bars)


def _round_up(value: int) -> int:
    """Return the smallest of 2, 4, 10, 20, 40, 100, ... that is not below a number."""
    size = 1
    while True:
        for factor in (2, 4, 10):
            if factor * size >= value:
                return factor * size
        size *= 10


def _ticks(top: int) -> tuple[int, ...]:
    return (0, top // 2, top)


def _read_day(text: str) -> date | None:
    try:
        day = date.fromisoformat(text) if text else None
    except ValueError:
        day = date.min
    if day and not 1970 < day.year < 9999:
        raise InputError("Give the day as in 2026-11-30.")
    return day
