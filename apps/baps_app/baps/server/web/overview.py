"""The first page: what serves each organ and how well, labels, trainings, the server, and what needs attention."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from fastapi import Request
from fastapi.responses import Response

from baps.blackbox.device import usable_device
from baps.errors import BapsError
from baps.registry.store import SHARED
from baps.server.middleware.root_path import external_url
from baps.server.web.adapter_table import CLICKS, DAMAGED, ORGANS, AdapterTable, AdapterVersion, OrganAdapters
from baps.server.web.layout import principal_of, render
from baps.server.web.plots import EvidencePlot, plot_evidence
from baps.server.web.state import state_of
from baps.server.web.trainings import last_task, read_trainings
from baps.site.doctor import Finding, Status
from baps.site.roles import Role
from baps.utils.redaction import shorten_paths

if TYPE_CHECKING:
    from baps.server.app import BapsApp

KINDS = {CLICKS: "click", ORGANS: "no click"}
"""How each model is prompted, for tables."""


@dataclass(frozen=True)
class ServedOrgan:
    """What serves an organ for one model.

    Attributes:
        kind: ``click`` or ``no click``.
        adapters: The adapters of the organ.
        served: The version that serves, or None for the unadapted model.
        fallback: Sentence if another adapter, or the unadapted model, serves in place of one of its own, or "".
    """

    kind: str
    adapters: OrganAdapters
    served: AdapterVersion | None
    fallback: str


@dataclass(frozen=True)
class Server:
    """The machine and the model.

    Attributes:
        model: Name of the black box, or "" while it is loading.
        weights: First characters of its hash, or "".
        device: Device that it runs on, or the address of its server.
        organ_model: Name of the organ model, or "" if no request has needed it yet.
        memory_used: Used memory in bytes.
        memory_total: All memory in bytes.
        disk_free: Free bytes of the disk of the adapters.
        disk_total: All bytes of that disk.
    """

    model: str
    weights: str
    device: str
    organ_model: str
    memory_used: int
    memory_total: int
    disk_free: int
    disk_total: int


@dataclass(frozen=True)
class Warned:
    """Something that needs attention.

    Attributes:
        what: What it is about.
        failed: Whether something does not work.
        message: What is wrong.
        remedy: What to do, or "".
    """

    what: str
    failed: bool
    message: str
    remedy: str


def overview(request: Request) -> Response:
    """Show the overview: what serves each organ and how well, labels, trainings and the server."""
    state, is_admin = state_of(request), principal_of(request).role.may(Role.ADMIN)
    app = state.app
    served, problems = served_organs(state.adapters)
    counts, findings = state.counts.get(), state.findings.get()
    trainings = read_trainings(trainer_stats(app), last_task())
    warnings = [
        *problems,
        *adapter_warnings(served),
        *finding_warnings(findings.value or {}, shows_paths=is_admin),
        *([Warned("Images and labels", True, counts.error, "")] if counts.error else []),
    ]
    return render(
        request,
        "web/overview.html",
        served=served,
        plots=evidence_plots(served),
        counts=counts,
        trainings=trainings,
        server=describe_server(app),
        warnings=warnings,
        is_checking=findings.value is None and not findings.error,
        address=external_url(request),
        has_pacs=app.remote,
    )


def training_status(request: Request) -> Response:
    """Show the part of the overview about trainings, which the page requests again every few seconds."""
    trainings = read_trainings(trainer_stats(state_of(request).app), last_task())
    return render(request, "web/training-status.html", trainings=trainings)


ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/", overview),
    ("GET", "/web/training-status", training_status),
]


def trainer_stats(app: BapsApp) -> dict[str, dict[str, Any]]:
    """Return the statistics of the last training of each trainer, by its name.

    Args:
        app: The app.
    """
    return {name: trainer.stats() for name, trainer in app._trainers.items()}


def served_organs(table: AdapterTable) -> tuple[list[ServedOrgan], list[Warned]]:
    """List what serves each organ: for clicks always, without clicks where there is an adapter.

    Args:
        table: The adapters.

    Returns:
        The organs, and a warning for each that cannot be read.
    """
    served: list[ServedOrgan] = []
    problems: list[Warned] = []
    shared = _read(table, CLICKS, SHARED, problems)
    for organ in table.organs(CLICKS):
        adapters = _read(table, CLICKS, organ, problems)
        if adapters is None:
            continue
        fallback = ""
        if organ and not adapters.versions:
            if shared and shared.served:
                fallback = f"the adapter for clicks without an organ, {shared.served.version}"
            else:
                fallback = "the unadapted model"
        served.append(ServedOrgan(KINDS[CLICKS], adapters, adapters.served, fallback))
    for organ in table.organs(ORGANS):
        adapters = _read(table, ORGANS, organ, problems)
        if adapters is not None and adapters.versions:
            served.append(ServedOrgan(KINDS[ORGANS], adapters, adapters.served, ""))
    return served, problems


def _read(table: AdapterTable, model: str, organ: str, problems: list[Warned]) -> OrganAdapters | None:
    try:
        return table.read(model, organ)
    except BapsError as error:
        problems.append(Warned(f"Adapters of {organ or 'clicks without an organ'}", True, str(error), ""))
        return None


def evidence_plots(served: Iterable[ServedOrgan]) -> list[tuple[ServedOrgan, AdapterVersion, EvidencePlot]]:
    """Plot the evidence of the versions that the next patients judge: what serves, and the newest one.

    Args:
        served: The organs.

    Returns:
        Organ, version and plot.
    """
    plots = []
    for organ in served:
        for version in organ.adapters.versions:
            is_shown = version.serves or (version.status is not None and version.status.in_play)
            plot = plot_evidence(version.patients) if is_shown else None
            if plot:
                plots.append((organ, version, plot))
    return plots


def adapter_warnings(served: Iterable[ServedOrgan]) -> list[Warned]:
    """List what is wrong with adapters: damaged files, lost evidence, and a version that serves and loses Dice.

    Args:
        served: The organs.

    Returns:
        The warnings.
    """
    warnings = []
    for organ in served:
        name = organ.adapters.organ or "clicks without an organ"
        for note in organ.adapters.notes:
            warnings.append(Warned(f"Evidence for {name}", False, note, ""))
        for version in organ.adapters.versions:
            if version.state == DAMAGED:
                warnings.append(Warned(f"Adapter of {name}", True, version.sentence, ""))
        now = organ.served
        if now and now.status and now.status.gain and now.status.gain.mean <= 0:
            warnings.append(
                Warned(
                    f"Adapter of {name}",
                    False,
                    f"{now.version} serves because a person chose it, and patients lose Dice: {now.sentence}.",
                    "Withdraw it or roll back, on the page Adapters.",
                )
            )
    return warnings


def finding_warnings(findings: dict[str, Finding], shows_paths: bool) -> list[Warned]:
    """List the findings that need attention.

    Args:
        findings: Findings by the name of the check.
        shows_paths: Whether the reader may see paths of this machine.

    Returns:
        The warnings.
    """
    clean = str if shows_paths else shorten_paths
    return [
        Warned(
            check[:1].upper() + check[1:],
            finding.status is Status.FAILED,
            clean(finding.message),
            clean(finding.remedy),
        )
        for check, finding in findings.items()
        if finding.status is not Status.OK
    ]


def describe_server(app: BapsApp) -> Server:
    """Describe the machine and the model.

    Args:
        app: The app.

    Returns:
        The description.
    """
    capabilities, memory = app.capabilities, psutil.virtual_memory()
    existing = next(place for place in (app.site.adapters, *app.site.adapters.parents) if place.exists())
    disk = _disk(existing)
    try:
        device = f"server {app.site.remote}" if app.site.remote else usable_device(app.site.device)
    except BapsError as error:
        device = str(error)
    return Server(
        capabilities.name if capabilities else "",
        capabilities.weights_sha256[:12] if capabilities else "",
        device,
        app.organ_model_name,
        memory.total - memory.available,
        memory.total,
        disk[0],
        disk[1],
    )


def _disk(folder: Path) -> tuple[int, int]:
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        usage = shutil.disk_usage(tempfile.gettempdir())
    return usage.free, usage.total
