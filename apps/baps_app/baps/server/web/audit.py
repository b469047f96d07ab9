"""The pages about what people did, for admins: the audit file with filters, and usage by week."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from fastapi.responses import Response

from baps.errors import BapsError, InputError
from baps.server.access_policy import POLICIES
from baps.server.request_context import context_of
from baps.server.web.layout import render
from baps.server.web.plots import plot_weeks
from baps.server.web.state import state_of
from baps.site.audit_search import AuditFilter, AuditPage, search

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


def _read_day(text: str) -> date | None:
    try:
        day = date.fromisoformat(text) if text else None
    except ValueError:
        day = date.min
    if day and not 1970 < day.year < 9999:
        raise InputError("Give the day as in 2026-11-30.")
    return day
