"""List the labels of a site for the page: who drew which organ when, and what state each label is in.

No label file is read: a folder's index and a PACS's register hold what is listed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from enum import Enum
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from baps.annotations.label_info import rename_info_keys
from baps.errors import InputError
from baps.server.datastores.dicomweb import PacsDatastore
from baps.server.datastores.dicomweb.stored_segments import StoredSegment
from baps.server.datastores.folder import StudiesDatastore
from baps.server.datastores.index import AtomicIndex

if TYPE_CHECKING:
    from monailabel.datastore.local import DataModel

PAGE = 50
"""Number of labels on a page."""

MAX_QUERY = 200
"""Maximum length of a search: every word is looked for in every label."""

FINAL = DefaultLabelTag.FINAL.value


class LabelState(str, Enum):
    """State of a label, or of an image without one.

    Attributes:
        CONFIRMED: A person drew or confirmed it; trainings use it.
        DISPUTED: It takes an organ away from another annotator; trainings use the earlier version.
        UNCONFIRMED: A model made it and nobody has confirmed it; in a PACS, or it is disputed.
        DRAFT: Somebody is working on it.
        REFUSED: It cannot be used, or the PACS has refused it.
        WAITING: The PACS has not accepted it yet.
        MISSING: The image has no label.
    """

    CONFIRMED = "confirmed"
    DISPUTED = "disputed"
    UNCONFIRMED = "not confirmed"
    DRAFT = "draft"
    REFUSED = "refused"
    WAITING = "waiting for the PACS"
    MISSING = "no label"


@dataclass(frozen=True)
class DrawnOrgan:
    """An organ of a label.

    Attributes:
        organ: The organ.
        author: Who drew it, or "".
        slices: Number of slices that it was annotated on, or None if the label does not say so.
        disputed: Whether trainings use an earlier version of it.
        segment: The segment in the PACS, or None.
    """

    organ: str
    author: str
    slices: int | None = None
    disputed: bool = False
    segment: StoredSegment | None = None


@dataclass(frozen=True)
class LabelRow:
    """A label.

    Attributes:
        image: Name of the image.
        state: State of the label.
        tag: Tag of the label in the folder, ``final`` in a PACS; "" if there is no label.
        organs: Its organs. They are not known for a file that somebody placed in the folder.
        saved: When it was saved, or None if that is not known.
        patient: The patient if it is known, or "".
        problem: Why it cannot be used, or "".
        file: File of the label in a folder, or None.
    """

    image: str
    state: LabelState
    tag: str = FINAL
    organs: tuple[DrawnOrgan, ...] = ()
    saved: datetime | None = None
    patient: str = ""
    problem: str = ""
    file: Path | None = None

    @cached_property
    def text(self) -> str:
        """What a search looks at, in lower case."""
        drawn = (part for one in self.organs for part in (one.organ, one.author))
        return "\n".join((self.image, self.patient, *drawn)).casefold()


@dataclass(frozen=True)
class LabelTable:
    """All labels of a site.

    Attributes:
        rows: The labels, sorted by image; then the images without one, if they are known.
        counts: Number of rows by state.
        knows_images: Whether images without a label are among the rows. A PACS may have too many.
    """

    rows: tuple[LabelRow, ...]
    counts: Mapping[LabelState, int]
    knows_images: bool


@dataclass(frozen=True)
class Selection:
    """A page of the labels that match.

    Attributes:
        rows: The labels of the page.
        total: Number of labels that match.
        page: Number of the page, from 1.
        pages: Number of pages, at least 1.
    """

    rows: tuple[LabelRow, ...]
    total: int
    page: int
    pages: int


def list_labels(datastore: Datastore, patient: Callable[[str], str]) -> LabelTable:
    """List all labels.

    Args:
        datastore: Datastore of the server.
        patient: Returns the patient of an image, or "" if it has not been read.

    Returns:
        The labels.

    Raises:
        InputError: If the datastore is one of MONAI Label's own.
        BapsError: If the PACS does not respond.
    """
    if isinstance(datastore, PacsDatastore):
        rows = _pacs_rows(datastore) + _local_rows(datastore, {}, skip=FINAL)
    elif isinstance(datastore, StudiesDatastore):
        problems = {image: check.error for image, check in datastore.known_final_labels().items() if check.error}
        rows = _local_rows(datastore, problems)
    else:
        raise InputError("This page lists the labels of a folder of studies or of a PACS. This server has another one.")
    rows = [replace(row, patient=patient(row.image)) for row in rows]
    rows.sort(key=lambda row: (row.state is LabelState.MISSING, row.image, list(LabelState).index(row.state)))
    counts = {state: sum(row.state is state for row in rows) for state in LabelState}
    return LabelTable(tuple(rows), counts, isinstance(datastore, StudiesDatastore))


def select(table: LabelTable, query: str, state: str, newest_first: bool, page: int) -> Selection:
    """Select the labels that match, and a page of them.

    Args:
        table: All labels.
        query: Words that must all be in the name of the image, the patient, an organ or an author.
        state: Value of a ``LabelState``, or "" for all labels.
        newest_first: Whether the labels that were saved last come first, rather than by image.
        page: Number of the page, from 1. If there are fewer, the last one is selected.

    Returns:
        The page.

    Raises:
        InputError: If the query is too long.
    """
    if len(query) > MAX_QUERY:
        raise InputError(f"Search for at most {MAX_QUERY} characters.")
    words = query.casefold().split()
    rows = [
        row
        for row in table.rows
        if (row.state.value == state if state else row.state is not LabelState.MISSING)
        and (not words or all(word in row.text for word in words))
    ]
    if newest_first:
        rows.sort(key=lambda row: row.saved.timestamp() if row.saved else 0.0, reverse=True)
    pages = max(1, -(-len(rows) // PAGE))
    page = min(max(page, 1), pages)
    return Selection(tuple(rows[(page - 1) * PAGE : page * PAGE]), len(rows), page, pages)


def _local_rows(datastore: AtomicIndex, problems: Mapping[str, str], skip: str = "") -> list[LabelRow]:
    """List the labels of an index, and the images without one."""
    listed, rows = datastore._datastore, []
    for image, entry in list(listed.objects.items()):
        labels = {tag: label for tag, label in list(entry.labels.items()) if tag != skip}
        for tag, label in labels.items():
            file = Path(listed.label_path(tag), f"{image}{label.ext}")
            rows.append(_local_row(image, tag, label, file, problems.get(image, "") if tag == FINAL else ""))
        if not labels and not skip:
            rows.append(LabelRow(image, LabelState.MISSING, ""))
    return rows


def _local_row(image: str, tag: str, label: DataModel, file: Path, problem: str) -> LabelRow:
    info = rename_info_keys(label.info)
    organs = drawn_organs(info)
    if problem:
        state = LabelState.REFUSED
    elif tag == DefaultLabelTag.ORIGINAL.value or info.get("confirmed") is False:
        state = LabelState.UNCONFIRMED
    elif tag != FINAL:
        state = LabelState.DRAFT
    else:
        state = LabelState.DISPUTED if any(one.disputed for one in organs) else LabelState.CONFIRMED
    saved = info.get("ts")
    when = datetime.fromtimestamp(saved, timezone.utc) if isinstance(saved, (int, float)) and saved > 0 else None
    return LabelRow(image, state, tag, organs, when, "", problem, file)


def drawn_organs(info: Mapping[str, Any]) -> tuple[DrawnOrgan, ...]:
    """Return the organs of a label in a folder, from what is stored with it.

    Args:
        info: Information about the label, see ``LabelInfo``.

    Returns:
        The organs that somebody marked, as far as that is known.
    """
    authors, annotated = _mapping(info.get("authors")), _mapping(info.get("annotated_slices"))
    disputed, segments = _mapping(info.get("disputed")), info.get("label_info")
    author = str(info.get("author") or "")
    names: dict[str, None] = dict.fromkeys(map(str, authors or annotated))
    if not names and isinstance(segments, list):
        names = dict.fromkeys(str(one.get("name")) for one in segments if isinstance(one, Mapping) and one.get("idx"))
    names |= dict.fromkeys(map(str, disputed))
    return tuple(
        DrawnOrgan(
            name,
            str(authors.get(name, author) or ""),
            len(annotated[name]) if isinstance(annotated.get(name), list) else None,
            name in disputed,
        )
        for name in names
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _pacs_rows(datastore: PacsDatastore) -> list[LabelRow]:
    """List the labels of a PACS: for each image the newest segments that count, and what is newer and does not."""
    rows = []
    for image, entries in groupby(datastore.label_listing(), key=lambda entry: entry[0]):
        confirmed: dict[str, StoredSegment] = {}
        others: list[tuple[LabelState, StoredSegment, str]] = []
        for _, segment, reason in entries:  # The newest first.
            if segment.name in confirmed:
                continue
            if reason:
                others.append((LabelState.REFUSED, segment, reason))
            elif segment.confirmed:
                confirmed[segment.name] = segment
            else:
                others.append((LabelState.UNCONFIRMED, segment, ""))
        if confirmed:
            organs = tuple(DrawnOrgan(one.name, one.author, segment=one) for one in confirmed.values())
            saved = max(one.when for one in confirmed.values())
            rows.append(LabelRow(image, LabelState.CONFIRMED, organs=organs, saved=saved))
        rows += [_segment_row(image, *other) for other in others]
    for segment, is_refused in datastore.outbox_listing():
        state = LabelState.REFUSED if is_refused else LabelState.WAITING
        problem = "The PACS has refused it. Ask who runs the PACS why; it is kept on this server." if is_refused else ""
        rows += [_segment_row(image, state, segment, problem) for image in segment.images[:1]]
    return rows


def _segment_row(image: str, state: LabelState, segment: StoredSegment, problem: str) -> LabelRow:
    organs = (DrawnOrgan(segment.name, segment.author, segment=segment),)
    return LabelRow(image, state, organs=organs, saved=segment.when, problem=problem)
