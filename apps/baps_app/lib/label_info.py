"""What is known of a label beside its voxels: names, who made it, whether a person confirmed it, what it covers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from baps.collected import notes
from baps.errors import InputError
from baps.label_map import LabelMap

MOST_LETTERS = 200
"""Of the name of an author or a model."""


def _none_is_empty(value: Any) -> Any:
    return [] if value is None else value


class Segment(BaseModel):
    """One segment of a labelmap."""

    name: str = Field(min_length=1, max_length=100)
    idx: int = Field(ge=0, le=65535)


class LabelInfo(BaseModel):
    """What a viewer or a script says when it saves a label; what else it says is kept beside it.

    Attributes:
        label_info: the segments, or none: then the site's own numbers hold.
        author: who drew or corrected it, or "".
        model: that made the mask, or "" where a person did.
        confirmed: whether a person stands by it. A model's mask is not confirmed unless it is said.
        slices: across K, that were labelled completely; unsaid: see ``covered_slices``.
        authors: who drew or corrected each label, where it is not all ``author``.
        covers: ``covered_slices`` as they were kept when the label was saved; of a label that is not in it, all.
    """

    model_config = ConfigDict(extra="allow")

    label_info: Annotated[list[Segment], BeforeValidator(_none_is_empty)] = Field(default_factory=list)
    author: str = Field("", max_length=MOST_LETTERS)
    model: str = Field("", max_length=MOST_LETTERS)
    confirmed: bool = True
    slices: list[Annotated[int, Field(ge=0)]] | None = None
    authors: dict[str, str] = Field(default_factory=dict)
    covers: dict[str, frozenset[int]] | None = None

    def author_of(self, organ: str) -> str:
        """Who drew or corrected one label, or ""."""
        return self.authors.get(organ, self.author)

    @model_validator(mode="before")
    @classmethod
    def _unconfirmed_unless_said(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("model") and "confirmed" not in given:
            return {**given, "confirmed": False}
        return given

    @model_validator(mode="after")
    def _different(self) -> LabelInfo:
        names, values = [s.name for s in self.label_info], [s.idx for s in self.label_info]
        if len(set(names)) != len(names) or len(set(values)) != len(values):
            raise ValueError(f"label_info names a label or a value twice: {list(zip(names, values, strict=True))}")
        return self


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


def name_values(info: LabelInfo, found: LabelMap, labels: Mapping[str, int]) -> dict[str, int]:
    """Name every segment of a label map that is to be saved, and keep the names of those that are marked nowhere.

    What was said decides by value, then what the file says; where the file uses a value for several segments, it alone
    decides. The site's own numbers hold where neither says anything; values that are none of them are kept without a
    name then, which a note says.

    Raises:
        InputError: if a marked value is not among the names that were said, no marked value has a name, or two have
            the same.
    """
    said = {} if found.renumbered else {segment.idx: segment.name for segment in info.label_info if segment.idx}
    marked, own = found.values(), {value: name for name, value in labels.items()}
    names = {**found.names, **said} or own
    nameless = [value for value in marked if value not in names]
    if nameless and (names is not own or len(nameless) == len(marked)):
        known = ", ".join(f"{value} is {name}" for value, name in names.items()) or "nothing was said"
        raise InputError(
            f"The values {nameless} of the label have no name ({known}). Name every segment in label_info, as in "
            '[{"name": "spleen", "idx": 1}]. Nothing was saved.'
        )
    if nameless:
        notes.give(f"The values {nameless} are no labels of this site. They were kept; nothing is trained on them.")
        marked = [value for value in marked if value in names]
    values: dict[str, int] = {}
    for value in marked:
        if names[value] in values:
            raise InputError(f"Two segments of the label are called {names[value]!r}. Rename one. Nothing was saved.")
        values[names[value]] = value
    for value, name in names.items():
        if name not in values and value not in marked:
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
    """
    covers = {}
    for name, value in values.items():
        marked = np.flatnonzero(found.mask(value).any((0, 1))).tolist()
        if info.slices is not None:
            covers[name] = sorted(set(info.slices))
        else:
            covers[name] = list(range(found.shape[2])) if whole and marked else marked
    return covers
