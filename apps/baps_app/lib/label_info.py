"""What is known of a label beside its voxels: names, who made it, whether a person confirmed it, what it covers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from baps.errors import InputError

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


def label_values(info: LabelInfo, labels: Mapping[str, int]) -> dict[str, int]:
    """Which value means which label in one labelmap: what was said when it was saved, else the site's own numbers.

    0 is what is marked as nothing, whatever it is called.
    """
    return {segment.name: segment.idx for segment in info.label_info if segment.idx} or dict(labels)


def covered_slices(
    info: LabelInfo, voxels: NDArray[np.integer[Any]], labels: Mapping[str, int], whole: bool = False
) -> dict[str, list[int]]:
    """For each label the slices across K on which it was looked for; elsewhere, unmarked does not mean absent.

    Args:
        info: what was said.
        voxels: the labelmap, (I, J, K).
        labels: names and values of the site.
        whole: whether an organ that is marked is marked wholly.
    """
    covers = {}
    for name, value in label_values(info, labels).items():
        marked = np.flatnonzero((voxels == value).any((0, 1))).tolist()
        if info.slices is not None:
            covers[name] = sorted(set(info.slices))
        else:
            covers[name] = list(range(voxels.shape[2])) if whole and marked else marked
    return covers
