"""The pages about adapters: what each training brought, for whom it is better, and what serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlencode

from fastapi import Form, HTTPException, Request
from fastapi.responses import Response

from baps.errors import BapsError, NotFoundError
from baps.registry.evidence import record_choice
from baps.registry.store import AdapterStore
from baps.server.request_context import context_of
from baps.server.web.adapter_table import (
    CLICKS,
    DAMAGED,
    ORGANS,
    VOLUMES,
    AdapterVersion,
    OrganAdapters,
    PatientEvidence,
)
from baps.server.web.images import ImageName, image_index
from baps.server.web.layout import principal_of, redirect, render, require_own_page
from baps.server.web.pictures import SHOWN, LabelledImage, chosen_cases
from baps.server.web.plots import plot_curves, plot_evidence
from baps.server.web.report import write_report
from baps.server.web.served import judged_versions, served_organs
from baps.server.web.state import Change, WebState, state_of
from baps.server.web.trainings import Curve
from baps.site.roles import Role

MODELS = {
    CLICKS: "Clicks",
    ORGANS: "Whole organs, without a click",
    VOLUMES: "Whole organs, from clicks in 3D",
}
"""Titles of the kinds of adapters."""

_UNADAPTED = "the unadapted model"


@dataclass(frozen=True)
class Confirmation:
    """What a person is asked before a change.

    Attributes:
        action: ``publish``, ``rollback`` or ``withdraw``.
        title: What the change is called.
        sentences: What changes, and for whom.
        is_risky: Whether masks are expected to get worse, or the gain is not proven.
    """

    action: str
    title: str
    sentences: tuple[str, ...]
    is_risky: bool


def adapters_page(request: Request) -> Response:
    """Show all adapters: for each organ its versions, what is known of them, and which one serves."""
    state = state_of(request)
    served, problems = served_organs(state.adapters)
    trained = [one for one in served if one.adapters.versions]
    return render(request, "web/adapters.html", organs=trained, models=MODELS, problems=problems)


def organ_page(request: Request, model: str = CLICKS, organ: str = "") -> Response:
    """Show the adapters of an organ: what serves, the versions, and what happened.

    Raises:
        NotFoundError: If there is no such model.
    """
    state = state_of(request)
    adapters = _read(state, model, organ)
    plots = [(one, plot) for one in judged_versions(adapters) if (plot := plot_evidence(one.patients))]
    change = state.changes.get((model, organ))
    return render(request, "web/organ.html", adapters=adapters, models=MODELS, plots=plots, change=change)


def version_page(request: Request, model: str = CLICKS, organ: str = "", version: str = "") -> Response:
    """Show a version of an adapter: the verdict, what every patient contributed, pictures, and how it was made.

    Raises:
        NotFoundError: If there is no such model or version.
    """
    state = state_of(request)
    adapters = _read(state, model, organ)
    now = _find(adapters, version)
    names = image_index(state.counts.get().value) if principal_of(request).role.may(Role.TRAINER) else {}
    return render(
        request,
        "web/version.html",
        adapters=adapters,
        now=now,
        models=MODELS,
        names={one.patient: _name(one, names) for one in now.patients},
        plot=plot_evidence(now.patients),
        curve=plot_curves(training_curve(now), 420, 170),
        settings=changed_settings(now.record),
    )


def pictures(request: Request, model: str = CLICKS, organ: str = "", version: str = "") -> Response:
    """Show pictures of the worst, the median and the best patient that judged a version.

    Raises:
        NotFoundError: If there is no such model or version.
    """
    state = state_of(request)
    adapters = _read(state, model, organ)
    now = _find(adapters, version)
    counts = state.counts.get(wait=10)
    cases = chosen_cases(now.patients, image_index(counts.value))
    is_compared = adapters.serves not in (None, version)
    shown = {name: title for name, title in SHOWN.items() if name != "served" or is_compared}
    return render(request, "web/pictures.html", adapters=adapters, now=now, cases=cases, shown=shown)


def picture(
    request: Request, model: str = CLICKS, organ: str = "", version: str = "", patient: str = "", show: str = "image"
) -> Response:
    """Send a picture of a patient's labelled slice. It is made now and is not stored.

    Raises:
        NotFoundError: If there is no such model, version, patient or kind of picture.
        BapsError: If the image cannot be read, or the model does not answer.
    """
    state = state_of(request)
    adapters = _read(state, model, organ)
    now = _find(adapters, version)
    evidence = next((one for one in now.patients if one.patient == patient), None)
    image = _image_of(evidence, image_index(state.counts.get(wait=10).value)) if evidence else None
    if image is None or show not in SHOWN:
        raise NotFoundError("There is no such picture. The label may have been changed or removed since.")
    context_of(request).image, context_of(request).adapter = image.image, f"{organ or 'shared'}/{version}"
    png = state.pictures.draw(LabelledImage(model, organ, version, adapters.serves or "", image), show)
    return Response(png, media_type="image/png", headers={"Cache-Control": "no-store"})


def report(request: Request, model: str = CLICKS, organ: str = "", version: str = "") -> Response:
    """Send a report of a version as one HTML file, without names of patients or images.

    Raises:
        NotFoundError: If there is no such model or version.
        BapsError: If the version is damaged.
    """
    adapters = _read(state_of(request), model, organ)
    return write_report(request, adapters, _find_intact(adapters, version), MODELS[model])


def confirm(request: Request, action: str = "", model: str = CLICKS, organ: str = "", version: str = "") -> Response:
    """Ask whether to change what serves an organ, and say what changes for whom.

    Raises:
        NotFoundError: If there is no such action, model or version.
    """
    adapters = _read(state_of(request), model, organ)
    asked = describe_change(adapters, action, version)
    return render(request, "web/confirm.html", adapters=adapters, asked=asked, version=version, models=MODELS)


def publish(
    request: Request, model: str = Form(""), organ: str = Form(""), version: str = Form(""), shown: str = Form("")
) -> Response:
    """Serve a version from now on."""
    return _change(request, model, organ, version, shown, lambda store: store.publish(organ, version))


def roll_back(request: Request, model: str = Form(""), organ: str = Form(""), shown: str = Form("")) -> Response:
    """Serve again what served before."""
    return _change(request, model, organ, "", shown, lambda store: store.roll_back(organ))


def withdraw(request: Request, model: str = Form(""), organ: str = Form(""), shown: str = Form("")) -> Response:
    """Serve the unadapted model from now on."""
    return _change(request, model, organ, "", shown, lambda store: store.withdraw(organ))


ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/web/adapters", adapters_page),
    ("GET", "/web/adapters/organ", organ_page),
    ("GET", "/web/adapters/version", version_page),
    ("GET", "/web/adapters/pictures", pictures),
    ("GET", "/web/adapters/picture", picture),
    ("GET", "/web/adapters/report", report),
    ("GET", "/web/adapters/confirm", confirm),
    ("POST", "/web/adapters/publish", publish),
    ("POST", "/web/adapters/rollback", roll_back),
    ("POST", "/web/adapters/withdraw", withdraw),
]


def describe_change(adapters: OrganAdapters, action: str, version: str) -> Confirmation:
    """Describe what a change means, and for whom.

    Args:
        adapters: The adapters of the organ.
        action: ``publish``, ``rollback`` or ``withdraw``.
        version: The version to publish.

    Returns:
        The question.

    Raises:
        NotFoundError: If there is no such action or version, or nothing to roll back or withdraw.
        BapsError: If the version is damaged.
    """
    name = adapters.organ or "clicks without an organ"
    what = f"every click on {adapters.organ}" if adapters.organ else "every click without an organ"
    viewers = "in 3D Slicer, in OHIF or by a program"
    if adapters.model == ORGANS:
        what = f"every request for the {adapters.organ} without a click"
    elif adapters.model == VOLUMES:
        what = f"every prompt for the {adapters.organ} in 3D"
        viewers = "in 3D Slicer, in a viewer of nnInteractive or by a program"
    if action == "publish":
        after, title = _find_intact(adapters, version).version, f"Publish {version} for {name}"
    elif action == "rollback" and adapters.previous is not None:
        after, title = adapters.previous, f"Roll back {name}"
    elif action == "withdraw" and adapters.published:
        after, title = "", f"Withdraw the adapter of {name}"
    else:
        raise NotFoundError(f"There is nothing to change for {name}. Open the page of the organ again.")
    new = adapters.find(after)
    is_risky = new is not None and not new.is_proven
    if action == "publish" and is_risky:
        title = f"Put {version} on trial for {name}"
    sentences = [
        f"From the next request on, {after or _UNADAPTED} answers {what}, for everyone who uses this server {viewers}. "
        f"Until now {adapters.serves or _UNADAPTED} does.",
        "Masks and labels that are saved already stay as they are.",
    ]
    if new:
        sentences.append(f"What is known of {after}: {new.state}, {new.sentence}.")
    if is_risky:
        sentences.append("It is not proven to be better than the unadapted model, so it counts as on trial.")
    sentences.append(
        "Your choice holds until the next training brings a candidate, or a person chooses again. All versions are "
        "kept, and confirmed labels go on judging them."
    )
    return Confirmation(action, title, tuple(sentences), is_risky)


def training_curve(version: AdapterVersion) -> list[Curve]:
    """Return the Dice during the training of a version.

    Args:
        version: The version.

    Returns:
        One curve, or none if the record has none.
    """
    points = tuple((float(x), float(dice)) for x, dice in version.record.get("curve", ()))
    return [Curve(version.organ or "any organ", points)] if points else []


def changed_settings(record: Mapping[str, Any]) -> dict[str, str]:
    """List the settings of a training by name.

    Args:
        record: Record of a version.

    Returns:
        Names and values.
    """
    settings = record.get("settings")
    return {name: str(value) for name, value in settings.items()} if isinstance(settings, Mapping) else {}


def _read(state: WebState, model: str, organ: str) -> OrganAdapters:
    if model not in state.adapters.models:
        raise NotFoundError(f"There are no adapters of this kind. Known ones: {', '.join(state.adapters.models)}.")
    return state.adapters.read(model, organ)


def _find(adapters: OrganAdapters, version: str) -> AdapterVersion:
    found = adapters.find(version)
    if found is None:
        known = ", ".join(one.version for one in adapters.versions) or "none"
        raise NotFoundError(f"There is no such version of {adapters.organ or 'this adapter'}. There are: {known}.")
    return found


def _find_intact(adapters: OrganAdapters, version: str) -> AdapterVersion:
    found = _find(adapters, version)
    if found.state == DAMAGED:
        raise BapsError(found.sentence)
    return found


def _image_of(patient: PatientEvidence, names: Mapping[str, ImageName]) -> ImageName | None:
    return next((names[one] for one in (*patient.images, patient.patient) if one in names), None)


def _name(patient: PatientEvidence, names: Mapping[str, ImageName]) -> str:
    """Return the names of a patient's images, which are names within the site, or the hash of the patient."""
    found = dict.fromkeys(names[one].image for one in (*patient.images, patient.patient) if one in names)
    return ", ".join(found) or patient.patient


def _change(
    request: Request,
    model: str,
    organ: str,
    version: str,
    shown: str,
    change: Callable[[AdapterStore], object],
) -> Response:
    """Change what serves an organ, if it is still what the page of the user showed."""
    require_own_page(request)
    state, user = state_of(request), principal_of(request).name
    adapters = _read(state, model, organ)
    if version:
        _find_intact(adapters, version)
    store = state.adapters.store(model)
    context_of(request).adapter = "/".join(filter(None, (organ or "shared", version)))
    with record_choice(store, organ):
        before = store.published(organ)
        if (before or "") != shown:
            raise HTTPException(409, _changed_meanwhile(state, model, organ, before))
        change(store)
        now = store.published(organ)
    sentence = f"chose {now or _UNADAPTED} in place of {before or _UNADAPTED}"
    state.changes[model, organ] = Change(user, sentence, datetime.now(timezone.utc))
    if not version:
        context_of(request).adapter = f"{organ or 'shared'}/{now or 'none'}"
    return redirect(request, f"/web/adapters/organ?{urlencode({'model': model, 'organ': organ})}")


def _changed_meanwhile(state: WebState, model: str, organ: str, now: str | None) -> str:
    """Say what another person, or a training, did since the page was loaded."""
    change = state.changes.get((model, organ))
    if change:
        who = change.user or "Another page"
        happened = f"{who} {change.sentence} at {change.time.astimezone():%H:%M}"
    else:
        happened = "a training, the evidence or the command line changed it"
    return (
        f"Nothing was changed. Your page is out of date: {happened}, and {now or _UNADAPTED} is chosen now. Look at "
        "the page again, and then decide."
    )
