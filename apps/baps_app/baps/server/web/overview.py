"""The first page: what serves each organ and how well, labels, trainings, the server, and what needs attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from baps.server.middleware.root_path import external_url
from baps.server.web.attention import Warned, adapter_warnings, finding_warnings, outbox_warnings
from baps.server.web.images import count_outbox
from baps.server.web.layout import principal_of, render
from baps.server.web.machine import describe_server
from baps.server.web.served import evidence_plots, served_organs, suggest
from baps.server.web.state import state_of
from baps.server.web.trainings import last_task, read_trainings, trainer_stats
from baps.site.roles import Role


def overview(request: Request) -> Response:
    """Show the overview: what serves each organ and how well, labels, trainings and the server."""
    state, is_admin = state_of(request), principal_of(request).role.may(Role.ADMIN)
    app = state.app
    served, problems = served_organs(state.adapters)
    counts, findings = state.counts.get(), state.findings.get()
    trainings = read_trainings(trainer_stats(app), last_task())
    outbox = count_outbox(app.datastore())
    remedy = "Check that the PACS is running. What is on this server goes on meanwhile." if app.remote else ""
    warnings = [
        *problems,
        *adapter_warnings(one.adapters for one in served),
        *finding_warnings(findings.value or {}, shows_paths=is_admin),
        *([Warned("Images and labels", True, counts.error, remedy)] if counts.error else []),
        *outbox_warnings(outbox),
    ]
    return render(
        request,
        "web/overview.html",
        served=served,
        plots=evidence_plots(served),
        counts=counts,
        suggestions=suggest(served, counts.value),
        trainings=trainings,
        server=describe_server(app),
        warnings=warnings,
        is_checking=findings.value is None and not findings.error,
        address=external_url(request),
        has_pacs=app.remote,
        outbox=outbox,
    )


def training_status(request: Request) -> Response:
    """Show the part of the overview about trainings, which the page requests again every few seconds."""
    trainings = read_trainings(trainer_stats(state_of(request).app), last_task())
    return render(request, "web/training-status.html", trainings=trainings)


ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/", overview),
    ("GET", "/web/training-status", training_status),
]
