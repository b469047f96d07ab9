"""What is known of a label beside its voxels: names, who made it, whether a person confirmed it, and on which
slices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from baps.errors import InputError
from baps.imaging.label_map import LabelMap
from baps.utils.printable import is_control, printable, printable_values

MOST_LETTERS = 200
"""Of the name of an author or a model."""

_MOST_NAME = 100
"""Letters of the name of a segment."""

_MOST_SEGMENTS = 1024
"""Named in one label; a site's labels are all named, also those that nobody drew."""

_MOST_SLICES = 65536

_SHOWN = 20
"""Names in a sentence."""

_MOST_COVERED = 100_000
"""Pairs of a label and a slice that it was looked for on; all are kept in MONAI Label's list."""


def _none_is_empty(value: Any) -> Any:
    return [] if value is None else value


_OLD_KEYS = {"covers": "annotated_slices"}
"""Keys that version 0.1 kept of labels. Nobody is warned: the program wrote them, not the operator."""


def rename_info_keys(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was kept of a label with today's keys.

    Args:
        info: As this version or 0.1 kept it. Where it has both keys, the new one is used.
    """
    renamed = {key: value for key, value in info.items() if key not in _OLD_KEYS}
    for old in info.keys() & _OLD_KEYS.keys():
        renamed.setdefault(_OLD_KEYS[old], info[old])
    return renamed


class Segment(BaseModel):
    """One segment of a labelmap."""

    name: str = Field(min_length=1, max_length=_MOST_NAME)
    idx: int = Field(ge=0, le=65535)


class Standing(BaseModel):
    """A version of one label that later ones are judged by.

    Attributes:
        author: who drew it, or "".
        version: its name.
    """

    author: str
    version: str


class LabelInfo(BaseModel):
    """What a viewer or a script says when it saves a label; what else it says is kept beside it.

    Attributes:
        label_info: the segments, or none: then the site's own numbers hold.
        author: who drew or corrected it, or "".
        model: that made the mask, or "" where a person did.
        confirmed: whether a person stands by it. A model's mask is not confirmed unless it is said.
        slices: across K, that were labelled completely; unsaid: see ``covered_slices``.
        authors: who drew or corrected each label, where it is not all ``author``.
        annotated_slices: By label the slices across K on which it was looked for, as ``covered_slices`` gave them when
            the label was saved. A label that is not in it was looked for on all slices.
        basis: by label the version that its changes are judged by, where that is an earlier one.
        disputed: by label the version that counts for it, where this one took it from another annotator and no trainer
            has confirmed that, see ``baps.annotations.disputes``.
    """

    model_config = ConfigDict(extra="allow")

    label_info: Annotated[list[Segment], BeforeValidator(_none_is_empty)] = Field(
        default_factory=list, max_length=_MOST_SEGMENTS
    )
    author: str = Field("", max_length=MOST_LETTERS)
    model: str = Field("", max_length=MOST_LETTERS)
    confirmed: bool = True
    slices: list[Annotated[int, Field(ge=0)]] | None = Field(None, max_length=_MOST_SLICES)
    authors: dict[str, str] = Field(default_factory=dict)
    annotated_slices: dict[str, frozenset[int]] | None = None
    basis: dict[str, Standing] = Field(default_factory=dict)
    disputed: dict[str, Standing] = Field(default_factory=dict)

    def author_of(self, organ: str) -> str:
        """Who drew or corrected one label, or ""."""
        return self.authors.get(organ, self.author)

    @model_validator(mode="before")
    @classmethod
    def _unconfirmed_unless_said(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        given = rename_info_keys(given)
        return {**given, "confirmed": False} if given.get("model") and "confirmed" not in given else given

    @model_validator(mode="after")
    def _different(self) -> LabelInfo:
        names, values = [s.name for s in self.label_info], [s.idx for s in self.label_info]
        if len(set(names)) != len(names) or len(set(values)) != len(values):
            named = list(zip(names, values, strict=True))
            raise ValueError(f"label_info names a label or a value twice: {named[:_SHOWN]}")
        return self


_SAID = ("label_info", "author", "model", "confirmed", "slices")
"""What a viewer says of a label."""

_OURS = frozenset(("annotated_slices", *_OLD_KEYS, "authors", "basis", "disputed", "erased", "confirmed_by", "found",
                   "restored", "damaged", "version", "ts", "name", "checksum", "extra"))  # fmt: skip
"""What the server alone says; a client that sends back what it was told says it too."""

_MOST_EXTRA = 16 << 10
"""Bytes of what else is said, as JSON."""

_MOST_DEPTH = 8


def read_request(given: Mapping[str, Any]) -> tuple[LabelInfo, dict[str, Any]]:
    """Read what came with a label in a request: what a viewer may say, and what is kept beside it.

    Returns:
        What is known of the label, and all else that was said.

    Raises:
        InputError: as ``read_label_info``; or if that is too much, or a name cannot be shown.
    """
    said = read_label_info({key: given[key] for key in _SAID if key in given})
    for segment in said.label_info:
        check_segment_name(segment.name)
    client = given.get("client_id")
    said.author = printable(said.author or (client[:MOST_LETTERS] if isinstance(client, str) else ""))
    said.model = printable(said.model)
    extra = {key: value for key, value in given.items() if key not in {*_SAID, *_OURS}}
    more = [{k: v for k, v in one.items() if k not in ("name", "idx")} for one in given.get("label_info") or []]
    check_extra([extra, *filter(None, more)], "What is said of the label")
    return said, printable_values(extra)


def check_segment_name(name: str) -> None:
    """Refuse a name of a segment that is too long, or that a terminal or a list cannot show.

    Raises:
        InputError: if it is one.
    """
    if not 0 < len(name) <= _MOST_NAME or any(map(is_control, name)) or not name.strip():
        raise InputError(
            f"The segment {name[:_MOST_NAME]!r} has a name that cannot be shown: give 1 to {_MOST_NAME} letters "
            "without control characters. Nothing was saved."
        )


def check_extra(value: Any, what: str) -> None:
    """Refuse what is said beside an image or a label if it is too much to be kept.

    Raises:
        InputError: if it is.
    """
    size, depth, level = len(json.dumps(value)), 0, [value]
    while level and depth <= _MOST_DEPTH + 1:
        holders = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))]
        level, depth = [inner for holder in holders for inner in holder], depth + 1
    if size > _MOST_EXTRA or depth > _MOST_DEPTH + 1:
        raise InputError(
            f"{what} is {size:,} bytes of JSON, {depth - 1} or more levels deep; {_MOST_EXTRA:,} bytes and "
            f"{_MOST_DEPTH} levels are kept. Send less. Nothing was saved."
        )


def read_label_info(given: Mapping[str, Any]) -> LabelInfo:
    """What came with a label.

    Raises:
        InputError: if it has another form; nothing should be saved then.
    """
    try:
        return LabelInfo.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "label_info"
        raise InputError(
            f"What was said of the label cannot be used ({where}: {first['msg']}). label_info is a list such as "
            '[{"name": "spleen", "idx": 1}]. Nothing was saved.'
        ) from None


def label_values(info: LabelInfo, labels: Mapping[str, int], names: Mapping[int, str] | None = None) -> dict[str, int]:
    """Which value means which label in one label map: what was said when it was saved, else what its file says, else
    the site's own numbers.

    0 is what is marked as nothing, whatever it is called.

    Args:
        info: what was said.
        labels: names and values of the site.
        names: of the file, by value.
    """
    said = {segment.name: segment.idx for segment in info.label_info if segment.idx}
    return said or {name: value for value, name in (names or {}).items()} or dict(labels)


def unnamed_values_note(found: LabelMap, values: Mapping[str, int]) -> tuple[str, ...]:
    """Return a sentence on the values that ``name_values`` gave no name, if there are any."""
    nameless = [value for value in found.values() if value not in values.values()]
    note = f"The values {nameless} are no labels of this site. They were kept; nothing is trained on them."
    return (note,) if nameless else ()


def name_values(info: LabelInfo, found: LabelMap, labels: Mapping[str, int]) -> dict[str, int]:
    """Name every segment of a label map that is to be saved, and keep the names of those that are marked nowhere.

    What was said decides by value, then what the file says; where the file uses a value for several segments, it alone
    decides. The site's own numbers hold where neither says anything; values that are none of them are kept without a
    name then, see ``unnamed_values_note``.

    Raises:
        InputError: if a marked value is not among the names that were said, no marked value has a name, or two have
            the same.
    """
    said = {} if found.renumbered else {segment.idx: segment.name for segment in info.label_info if segment.idx}
    marked, own = found.values(), {value: name for name, value in labels.items()}
    names = {**found.names, **said} or own
    nameless = [value for value in marked if value not in names]
    if nameless and (names is not own or len(nameless) == len(marked)):
        some = list(names.items())[:_SHOWN]
        known = ", ".join(f"{value} is {name}" for value, name in some) or "nothing was said"
        known += ", ..." if len(names) > _SHOWN else ""
        raise InputError(
            f"The values {nameless} of the label have no name ({known}). Name every segment in label_info, as in "
            '[{"name": "spleen", "idx": 1}]. Nothing was saved.'
        )
    marked = [value for value in marked if value in names]
    values: dict[str, int] = {}
    for value in marked:
        if names[value] in values:
            raise InputError(f"Two segments of the label are called {names[value]!r}. Rename one. Nothing was saved.")
        values[names[value]] = value
    taken = set(marked)
    for value, name in names.items():
        if name not in values and value not in taken:
            values[name] = value
    return values


def covered_slices(
    info: LabelInfo, found: LabelMap, values: Mapping[str, int], whole: bool = False
) -> dict[str, list[int]]:
    """For each label the slices across K on which it was looked for; elsewhere, unmarked does not mean absent.

    Args:
        info: what was said.
        found: the label map.
        values: which value means which label.
        whole: whether an organ that is marked is marked wholly.

    Raises:
        InputError: if that is more than can be kept.
    """
    covered, marked = {}, found.slices_by_value()
    for name, value in values.items():
        if info.slices is not None:
            covered[name] = sorted(set(info.slices))
        else:
            covered[name] = list(range(found.shape[2])) if whole and value in marked else marked.get(value, [])
    if sum(map(len, covered.values())) > _MOST_COVERED:
        raise InputError(
            f"The label says of {len(covered)} segments on which slices they were looked for, more than "
            f"{_MOST_COVERED:,} times a slice. Name fewer segments, or send no slices. Nothing was saved."
        )
    return covered
