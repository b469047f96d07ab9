"""The pages about labels: a table with search, the versions of each label, readers, and what Next Sample offers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Any
from urllib.parse import urlencode

from fastapi import Form, HTTPException, Request
from fastapi.responses import Response

from baps.annotations.history import LabelHistory, OutdatedError, check_tag
from baps.errors import InputError, NotFoundError
from baps.server.datastores.dicomweb import PacsDatastore
from baps.server.datastores.folder import StudiesDatastore
from baps.server.request_context import context_of
from baps.server.request_names import checked_name
from baps.server.web.label_differences import SHOWN, Comparison
from baps.server.web.label_numbers import Numbers
from baps.server.web.label_table import FINAL, MAX_QUERY, LabelRow, LabelState, Selection, select
from baps.server.web.label_versions import ImageLabels, VersionRow, find_index, read_versions
from baps.server.web.layout import principal_of, redirect, render, require_own_page
from baps.server.web.readers import ReaderPair, ReaderTable
from baps.server.web.state import Change, WebState, state_of

STATES = {
    LabelState.CONFIRMED: "Confirmed",
    LabelState.DISPUTED: "Disputed",
    LabelState.UNCONFIRMED: "Not confirmed",
    LabelState.DRAFT: "In draft",
    LabelState.REFUSED: "Refused",
    LabelState.WAITING: "Waiting for the PACS",
    LabelState.MISSING: "Without a label",
}
"""Titles of the states of labels."""

_NUMBERS_SECONDS = 1.0
"""Time for which the page of an image waits for the volumes of its organs."""

_MAX_CHANGES = 1000
"""Number of labels whose last change by a page is remembered."""


@dataclass(frozen=True)
class OrganCell:
    """An organ of a label, as the table shows it.

    Attributes:
        organ: The organ.
        author: Who drew it, or "".
        slices: Number of slices, or None if it is not known.
        millilitres: Volume in ml, or None if it is not known.
        disputed: Whether trainings use an earlier version of it.
    """

    organ: str
    author: str
    slices: int | None
    millilitres: float | None
    disputed: bool


@dataclass(frozen=True)
class ShownRow:
    """A label, as the table shows it.

    Attributes:
        row: The label.
        organs: Its organs.
        is_pending: Whether its numbers are being computed.
    """

    row: LabelRow
    organs: tuple[OrganCell, ...]
    is_pending: bool


def labels_page(request: Request, q: str = "", state: str = "", sort: str = "", page: str = "1") -> Response:
    """Show the labels that match, page by page."""
    return _table(request, "web/labels.html", q, state, sort, page)


def label_rows(request: Request, q: str = "", state: str = "", sort: str = "", page: str = "1") -> Response:
    """Show the table alone, which the page requests again while volumes are being computed."""
    return _table(request, "web/labels-table.html", q, state, sort, page)


def image_page(request: Request, image: str = "", tag: str = "", version: str = "", against: str = "") -> Response:
    """Show the versions of the labels of an image, and the difference between two of them.

    Raises:
        NotFoundError: If there is no such image.
    """
    state = state_of(request)
    labels = read_versions(state.app.datastore(), checked_name(image, "image"))
    context_of(request).image = image
    chosen = _chosen(labels, tag, version)
    comparison = None
    if chosen and not chosen.damaged:
        comparison = Comparison(image, chosen.tag, chosen.name, against or chosen.previous)
    readers = state.readers.get(wait=0)
    rows = _rows_of(state, image)
    return render(
        request,
        "web/label.html",
        labels=labels,
        chosen=chosen,
        comparison=comparison,
        earlier=_find(labels, comparison.against) if comparison else None,
        pairs=_pairs_of(readers.value, image),
        rows=rows,
        volumes=_volumes_of(state, rows),
        change=next(
            (state.label_changes[image, one] for one in labels.newest if (image, one) in state.label_changes), None
        ),
        has_pacs=state.app.remote,
        query=urlencode(_query_of(comparison)) if comparison else "",
    )


def differences(request: Request, image: str = "", tag: str = FINAL, version: str = "", against: str = "") -> Response:
    """Show what differs between two versions, with pictures.

    Raises:
        NotFoundError: If there is no such image or version.
        BapsError: If one of them cannot be read.
    """
    comparison = _comparison(request, image, tag, version, against)
    difference = state_of(request).differences.compare(comparison)
    query = urlencode(_query_of(comparison))
    return render(
        request, "web/label-differences.html", difference=difference, comparison=comparison, query=query, shown=SHOWN
    )


def picture(
    request: Request,
    image: str = "",
    tag: str = FINAL,
    version: str = "",
    against: str = "",
    index: int = 0,
    show: str = "difference",
) -> Response:
    """Send a picture of a slice that differs. It is made now and is not stored.

    Raises:
        NotFoundError: If there is no such image, version or picture.
        BapsError: If a version cannot be read.
    """
    comparison = _comparison(request, image, tag, version, against)
    png = state_of(request).differences.draw(comparison, index, show)
    return Response(png, media_type="image/png", headers={"Cache-Control": "no-store"})


def confirm_page(
    request: Request, action: str = "", image: str = "", tag: str = FINAL, version: str = "", organ: str = ""
) -> Response:
    """Ask whether to restore a version, or to confirm a disputed organ, and say what changes.

    Raises:
        NotFoundError: If there is no such action, image, version or disputed organ.
    """
    check_tag(tag)
    labels = read_versions(state_of(request).app.datastore(), checked_name(image, "image"))
    context_of(request).image = image
    kept = [one for one in labels.versions.get(tag, ()) if one.is_kept]
    newest = next((one for one in kept if one.serves), None)
    chosen = next((one for one in kept if one.name == version), None)
    disputed = any(one.organ == organ and one.disputed for one in newest.organs) if newest else False
    if action == "restore" and chosen and newest and not chosen.serves:
        title = f"Restore the version of {chosen.when}"
    elif action == "confirm" and disputed:
        title = f"Confirm the {organ} of {image}"
    else:
        raise NotFoundError("There is nothing to change here. Open the page of the image again.")
    return render(
        request,
        "web/label-confirm.html",
        action=action,
        title=title,
        image=image,
        tag=tag,
        chosen=chosen,
        newest=newest,
        organ=organ,
        shown=labels.newest.get(tag, ""),
    )


def restore(
    request: Request, image: str = Form(""), tag: str = Form(FINAL), version: str = Form(""), shown: str = Form("")
) -> Response:
    """Serve an earlier version again. The version that it replaces is kept."""
    history = _history_to_change(request, image, tag)
    context_of(request).details.update(tag=tag, version=version[:100])
    by = principal_of(request).name
    try:
        history.restore(image, tag, version, partial(history.check_fits, image), by, shown)
    except OutdatedError:
        raise HTTPException(409, _changed_meanwhile(request, history, image, tag)) from None
    note_change(request, image, tag, f"restored the version of {version}")
    return redirect(request, f"/web/labels/image?{urlencode({'image': image})}")


def confirm(request: Request, image: str = Form(""), organ: str = Form(""), shown: str = Form("")) -> Response:
    """Confirm a disputed organ, so that trainings use it."""
    history = _history_to_change(request, image, FINAL)
    if not organ:
        raise InputError("Name the organ to confirm.")
    context_of(request).details.update(tag=FINAL, organs=[organ[:100]])
    try:
        history.confirm(image, FINAL, [organ], principal_of(request).name, shown)
    except OutdatedError:
        raise HTTPException(409, _changed_meanwhile(request, history, image, FINAL)) from None
    note_change(request, image, FINAL, f"confirmed {organ}")
    return redirect(request, f"/web/labels/image?{urlencode({'image': image})}")


def readers_page(request: Request) -> Response:
    """Show how well people agree who drew the same organ on the same image."""
    readers = state_of(request).readers.get(wait=0.05)
    context_of(request).images = [pair.image for pair in readers.value.pairs] if readers.value else []
    return render(request, "web/readers.html", readers=readers)


def next_page(request: Request) -> Response:
    """Show what each strategy of Next Sample would offer, and why."""
    return render(request, "web/next.html", previews=state_of(request).next_samples.get(wait=0.05))


ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/web/labels", labels_page),
    ("GET", "/web/labels/rows", label_rows),
    ("GET", "/web/labels/image", image_page),
    ("GET", "/web/labels/differences", differences),
    ("GET", "/web/labels/picture", picture),
    ("GET", "/web/labels/confirm", confirm_page),
    ("GET", "/web/labels/readers", readers_page),
    ("GET", "/web/labels/next", next_page),
    ("POST", "/web/labels/restore", restore),
    ("POST", "/web/labels/confirm", confirm),
]


def show_row(row: LabelRow, numbers: Numbers | None) -> ShownRow:
    """Join what is stored with a label and what was computed from its file.

    Args:
        row: The label.
        numbers: Its numbers, or None if they are being computed.

    Returns:
        The row of the table. Organs that the label does not mark are left out once that is known.
    """
    known = numbers or {}
    cells = []
    for drawn in row.organs:
        number = known.get(drawn.organ)
        if number is None and known and not drawn.disputed and drawn.segment is None:
            continue
        slices = drawn.slices if drawn.slices is not None else number.slices if number else None
        millilitres = number.millilitres if number else None
        cells.append(OrganCell(drawn.organ, drawn.author, slices, millilitres, drawn.disputed))
    listed = {drawn.organ for drawn in row.organs}
    for organ, number in known.items():
        if organ not in listed:
            cells.append(OrganCell(organ, "", number.slices, number.millilitres, False))
    is_pending = numbers is None and row.state is not LabelState.MISSING
    return ShownRow(row, tuple(cells), is_pending)


def _table(request: Request, template: str, query: str, wanted: str, sort: str, page: str) -> Response:
    state = state_of(request)
    listed = state.labels.get(wait=0.05)
    is_newest_first = sort == "newest"
    number = int(page) if page.isdecimal() and page.isascii() and len(page) < 7 else 1
    found, rows = Selection((), 0, 1, 1), list[ShownRow]()
    if listed.value:
        found = select(listed.value, query, wanted, is_newest_first, number)
        rows = [show_row(*pair) for pair in zip(found.rows, state.numbers.get(found.rows), strict=True)]
    filters = {"q": query, "state": wanted, "sort": "newest" if is_newest_first else ""}
    sent = {name: value for name, value in filters.items() if value}
    return render(
        request,
        template,
        listed=listed,
        found=found,
        rows=rows,
        filters=filters,
        max_query=MAX_QUERY,
        states=STATES,
        is_pending=any(row.is_pending for row in rows) or (listed.value is None and not listed.error),
        address=urlencode({**sent, "page": found.page}),
        pages={
            name: urlencode({**sent, "page": found.page + step})
            for name, step in (("before", -1), ("after", 1))
            if 1 <= found.page + step <= found.pages
        },
    )


def _chosen(labels: ImageLabels, tag: str, name: str) -> VersionRow | None:
    """Return the version whose difference is shown: the named one, or the newest final one."""
    rows = [row for group in labels.versions.values() for row in group]
    if name:
        chosen = next((row for row in rows if row.name == name and tag in ("", row.tag)), None)
        if chosen is None:
            raise NotFoundError("There is no such version. It may have been removed. Open the page of the image again.")
        return chosen
    return next(iter([row for row in rows if row.tag == FINAL] or rows), None)


def _find(labels: ImageLabels, name: str) -> VersionRow | None:
    return next((row for group in labels.versions.values() for row in group if row.name == name), None)


def _pairs_of(readers: ReaderTable | None, image: str) -> list[ReaderPair]:
    return [pair for pair in readers.pairs if pair.image == image and pair.dice is not None] if readers else []


def _rows_of(state: WebState, image: str) -> list[LabelRow]:
    """Return the rows of an image in the table, for their states and problems."""
    listed = state.labels.get(wait=0.05).value
    return [row for row in listed.rows if row.image == image] if listed else []


def _volumes_of(state: WebState, rows: list[LabelRow]) -> dict[str, dict[str, float]]:
    """Return the volumes of the organs of the labels, ml, by tag and organ, as far as they are known."""
    if None in state.numbers.get(rows):
        state.numbers.wait(_NUMBERS_SECONDS)
    return {
        row.tag: {organ: one.millilitres for organ, one in (numbers or {}).items()}
        for row, numbers in zip(rows, state.numbers.get(rows), strict=True)
    }


def _comparison(request: Request, image: str, tag: str, version: str, against: str) -> Comparison:
    check_tag(tag)
    context_of(request).image = image
    return Comparison(checked_name(image, "image"), tag, version, against)


def _query_of(comparison: Comparison) -> dict[str, str]:
    return {
        "image": comparison.image,
        "tag": comparison.tag,
        "version": comparison.version,
        "against": comparison.against,
    }


def _history_to_change(request: Request, image: str, tag: str) -> LabelHistory:
    """Return the history of the labels, if a label of this image can be changed there.

    Raises:
        NotFoundError: If there is no such image.
        InputError: If the PACS keeps the label.
        StorageError: If the folder cannot be written to.
    """
    require_own_page(request)
    check_tag(tag)
    context_of(request).image = image
    datastore = find_index(state_of(request).app.datastore(), checked_name(image, "image"))
    if isinstance(datastore, PacsDatastore) and tag == FINAL:
        raise InputError(
            "The PACS keeps the versions of this label. To use an earlier one again, or to confirm one, open it in the "
            "viewer and save it."
        )
    if isinstance(datastore, StudiesDatastore):
        datastore.check_writable("label")
    return datastore.history


def note_change(request: Request, image: str, tag: str, sentence: str) -> None:
    """Keep who changed a label, and show the change on the pages and to the adapters.

    Args:
        request: The request.
        image: Name of the image.
        tag: Tag of the label.
        sentence: What the user did, without the subject.
    """
    state = state_of(request)
    state.label_changes.pop((image, tag), None)
    state.label_changes[image, tag] = Change(principal_of(request).name, sentence, datetime.now(timezone.utc))
    while len(state.label_changes) > _MAX_CHANGES:
        state.label_changes.pop(next(iter(state.label_changes)))
    for value in (state.labels, state.counts, state.readers):
        value.expire()
    state.app.labels_changed()


def _changed_meanwhile(request: Request, history: LabelHistory, image: str, tag: str) -> str:
    """Say what happened to a label since the page was loaded."""
    change = state_of(request).label_changes.get((image, tag))
    versions = history.versions(image, tag)
    if change and versions and versions[-1].saved_at <= change.time:
        happened = f"{change.user or 'Another page'} {change.sentence} at {change.time.astimezone():%H:%M}"
    elif versions:
        newest = versions[-1]
        who = newest.info.get("restored_by") or newest.info.get("author") or "somebody"
        happened = f"{who} saved another version at {newest.saved_at.astimezone():%Y-%m-%d %H:%M}"
    else:
        happened = "its versions were removed"
    return f"Nothing was changed. Your page is out of date: {happened}. Look at the image again, and then decide."
