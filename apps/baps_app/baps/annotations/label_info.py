"""Information about a label: names, author, whether a person confirmed it, and which slices were annotated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from baps.errors import InputError
from baps.imaging.label_map import LabelMap
from baps.utils.printable import is_control, printable, printable_values

MAX_NAME_LENGTH = 200
"""Maximum length of the name of an author or a model."""

_MAX_SEGMENT_NAME = 100
"""Maximum length of the name of a segment."""

_MAX_SEGMENTS = 1024
"""Maximum number of segments in one label; all labels of a site are named, including those that nobody drew."""

_MAX_SLICES = 65536

_MAX_LISTED = 20
"""Maximum number of names in a sentence."""

_MAX_ANNOTATED_PAIRS = 100_000
"""Maximum number of pairs of a label and a slice that was annotated; all are kept in MONAI Label's list."""


def _none_to_empty(value: Any) -> Any:
    return [] if value is None else value


_OLD_KEYS = {"covers": "annotated_slices"}
"""Keys that version 0.1 stored with labels. There is no warning: the program wrote them, not the operator."""


def rename_info_keys(info: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the keys of stored information about a label to the current ones.

    Args:
        info: information that this version or version 0.1 stored. If it has both keys, the new one is used.

    Returns:
        The information with the current keys.
    """
    renamed = {key: value for key, value in info.items() if key not in _OLD_KEYS}
    for old in info.keys() & _OLD_KEYS.keys():
        renamed.setdefault(_OLD_KEYS[old], info[old])
    return renamed


class Segment(BaseModel):
    """One segment of a labelmap.

    Attributes:
        name: name of the segment.
        idx: its value in the labelmap.
    """

    name: str = Field(min_length=1, max_length=_MAX_SEGMENT_NAME)
    idx: int = Field(ge=0, le=65535)


class ReferenceVersion(BaseModel):
    """A version of one label that later versions are compared with.

    Attributes:
        author: the annotator, or "".
        version: name of the version.
    """

    author: str
    version: str


class LabelInfo(BaseModel, extra="allow"):
    """Information that a viewer or a script sends when it saves a label; further keys are stored beside it.

    Attributes:
        label_info: the segments; if empty, the site's own values apply.
        author: annotator who drew or corrected the label, or "".
        model: model that made the mask, or "" if a person did.
        confirmed: whether a person confirmed the label. By default, a model's mask is not confirmed.
        slices: slices across K that were annotated completely; for the default, see ``list_annotated_slices``.
        authors: annotator of each label, if not all are by ``author``.
        annotated_slices: for each label, the slices across K that were annotated, as ``list_annotated_slices`` returned
            them when the label was saved; all for a label that is missing.
        basis: for each label, the version that changes are compared with, if it is an earlier one.
        disputed: for each label, the version that trainings use instead, if this one took it from another annotator and
            no trainer has confirmed that, see ``baps.annotations.disputes``.
    """

    label_info: Annotated[list[Segment], BeforeValidator(_none_to_empty)] = Field(
        default_factory=list, max_length=_MAX_SEGMENTS
    )
    author: str = Field("", max_length=MAX_NAME_LENGTH)
    model: str = Field("", max_length=MAX_NAME_LENGTH)
    confirmed: bool = True
    slices: list[Annotated[int, Field(ge=0)]] | None = Field(None, max_length=_MAX_SLICES)
    authors: dict[str, str] = Field(default_factory=dict)
    annotated_slices: dict[str, frozenset[int]] | None = None
    basis: dict[str, ReferenceVersion] = Field(default_factory=dict)
    disputed: dict[str, ReferenceVersion] = Field(default_factory=dict)

    def author_of(self, organ: str) -> str:
        """Return the annotator of one label, or "".

        Args:
            organ: name of the label.

        Returns:
            The name of the annotator.
        """
        return self.authors.get(organ, self.author)

    @model_validator(mode="before")
    @classmethod
    def _default_confirmed(cls, request: Any) -> Any:
        if not isinstance(request, dict):
            return request
        request = rename_info_keys(request)
        return {**request, "confirmed": False} if request.get("model") and "confirmed" not in request else request

    @model_validator(mode="after")
    def _check_unique(self) -> LabelInfo:
        names, values = [s.name for s in self.label_info], [s.idx for s in self.label_info]
        if len(set(names)) != len(names) or len(set(values)) != len(values):
            named = list(zip(names, values, strict=True))
            raise ValueError(f"label_info names a label or a value twice: {named[:_MAX_LISTED]}")
        return self


_CLIENT_KEYS = ("label_info", "author", "model", "confirmed", "slices")
"""Keys that a viewer may send about a label."""

_SERVER_KEYS = frozenset((
    "annotated_slices", *_OLD_KEYS, "authors", "basis", "disputed", "erased", "confirmed_by", "found", "restored",
    "restored_by", "damaged", "version", "ts", "name", "checksum", "extra",
))  # fmt: skip
"""Keys that only the server sets; a client that sends back what it received sends them too."""

_MAX_EXTRA_BYTES = 16 << 10
"""Maximum size of further keys, in bytes of JSON."""

_MAX_EXTRA_DEPTH = 8


def read_request(request: Mapping[str, Any]) -> tuple[LabelInfo, dict[str, Any]]:
    """Read the information that a request sends about a label.

    Args:
        request: the information as it was received.

    Returns:
        What a viewer may say of the label, and all further keys.

    Raises:
        InputError: as ``read_label_info``; or if there are too many further keys, or a name cannot be displayed.
    """
    info = read_label_info({key: request[key] for key in _CLIENT_KEYS if key in request})
    for segment in info.label_info:
        check_segment_name(segment.name)
    client = request.get("client_id")
    info.author = printable(info.author or (client[:MAX_NAME_LENGTH] if isinstance(client, str) else ""))
    info.model = printable(info.model)
    extra = {key: value for key, value in request.items() if key not in {*_CLIENT_KEYS, *_SERVER_KEYS}}
    segment_extras = [
        {k: v for k, v in one.items() if k not in ("name", "idx")} for one in request.get("label_info") or []
    ]
    check_extra([extra, *filter(None, segment_extras)], "The information about the label")
    return info, printable_values(extra)


def check_segment_name(name: str) -> None:
    """Check that the name of a segment is short enough, and that a terminal or a list can display it.

    Args:
        name: the name.

    Raises:
        InputError: if it is not.
    """
    if not 0 < len(name) <= _MAX_SEGMENT_NAME or any(map(is_control, name)) or not name.strip():
        raise InputError(
            f"The segment {name[:_MAX_SEGMENT_NAME]!r} has a name that cannot be shown: give 1 to "
            f"{_MAX_SEGMENT_NAME} letters without control characters. Nothing was saved."
        )


def check_extra(value: Any, what: str) -> None:
    """Check that further keys of an image or a label are not too large to be stored.

    Args:
        value: the keys, as JSON.
        what: start of the message.

    Raises:
        InputError: if they are.
    """
    size, depth, level = len(json.dumps(value)), 0, [value]
    while level and depth <= _MAX_EXTRA_DEPTH + 1:
        holders = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))]
        level, depth = [inner for holder in holders for inner in holder], depth + 1
    if size > _MAX_EXTRA_BYTES or depth > _MAX_EXTRA_DEPTH + 1:
        raise InputError(
            f"{what} is {size:,} bytes of JSON, {depth - 1} or more levels deep; the limits are {_MAX_EXTRA_BYTES:,} "
            f"bytes and {_MAX_EXTRA_DEPTH} levels. Send less. Nothing was saved."
        )


def read_label_info(request: Mapping[str, Any]) -> LabelInfo:
    """Validate information about a label.

    Args:
        request: the information as it was received.

    Returns:
        The validated information.

    Raises:
        InputError: if it is invalid; nothing should be saved then.
    """
    try:
        return LabelInfo.model_validate(dict(request))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "label_info"
        raise InputError(
            f"The information about the label cannot be used ({where}: {first['msg']}). label_info is a list such as "
            '[{"name": "spleen", "idx": 1}]. Nothing was saved.'
        ) from None


def label_values(info: LabelInfo, labels: Mapping[str, int], names: Mapping[int, str] | None = None) -> dict[str, int]:
    """Return the value of each label in a label map.

    The values are those that were sent when it was saved, else those of its file, else the site's. The value 0 is never
    a label.

    Args:
        info: information about the label.
        labels: names and values of the site.
        names: names in the file by value, or None.

    Returns:
        Values by name.
    """
    sent = {segment.name: segment.idx for segment in info.label_info if segment.idx}
    return sent or {name: value for value, name in (names or {}).items()} or dict(labels)


def unnamed_values_note(label_map: LabelMap, values: Mapping[str, int]) -> tuple[str, ...]:
    """Return a sentence on the values that ``name_values`` left without a name, or nothing.

    Args:
        label_map: the label map.
        values: values by name, as ``name_values`` returned them.

    Returns:
        One sentence, or none.
    """
    unnamed = [value for value in label_map.values() if value not in values.values()]
    note = f"The values {unnamed} are not labels of this site. They were kept, but are not trained on."
    return (note,) if unnamed else ()


def name_values(info: LabelInfo, label_map: LabelMap, labels: Mapping[str, int]) -> dict[str, int]:
    """Name every segment of a label map that is to be saved, and keep names of segments that are not marked.

    Names are taken from the information that was sent, then from the file; if the file uses one value for several
    segments, only from the file. If neither has names, the site's values apply; values that are not among them are kept
    without a name, see ``unnamed_values_note``.

    Args:
        info: information about the label.
        label_map: the label map.
        labels: names and values of the site.

    Returns:
        Values by name.

    Raises:
        InputError: if a marked value is not among the names that were sent, no marked value has a name, or two have the
            same name.
    """
    sent = {} if label_map.renumbered else {segment.idx: segment.name for segment in info.label_info if segment.idx}
    marked, site_names = label_map.values(), {value: name for name, value in labels.items()}
    names = {**label_map.names, **sent} or site_names
    unnamed = [value for value in marked if value not in names]
    if unnamed and (names is not site_names or len(unnamed) == len(marked)):
        some = list(names.items())[:_MAX_LISTED]
        known = ", ".join(f"{value} is {name}" for value, name in some) or "no names were sent"
        known += ", ..." if len(names) > _MAX_LISTED else ""
        raise InputError(
            f"The values {unnamed} of the label have no name ({known}). Name every segment in label_info, as in "
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


def list_annotated_slices(
    info: LabelInfo, label_map: LabelMap, values: Mapping[str, int], complete_labels: bool = False
) -> dict[str, list[int]]:
    """Determine the slices across K on which each label was annotated; on others, unmarked does not mean absent.

    Args:
        info: information about the label.
        label_map: the label map.
        values: value of each label.
        complete_labels: whether an organ that is marked is marked completely.

    Returns:
        Slice indices by name.

    Raises:
        InputError: if there are more than can be stored.
    """
    annotated, marked = {}, label_map.slices_by_value()
    for name, value in values.items():
        if info.slices is not None:
            annotated[name] = sorted(set(info.slices))
        else:
            annotated[name] = (
                list(range(label_map.shape[2])) if complete_labels and value in marked else marked.get(value, [])
            )
    if sum(map(len, annotated.values())) > _MAX_ANNOTATED_PAIRS:
        raise InputError(
            f"The label lists annotated slices of {len(annotated)} segments, more than {_MAX_ANNOTATED_PAIRS:,} in "
            "total. Name fewer segments, or send no slices. Nothing was saved."
        )
    return annotated
