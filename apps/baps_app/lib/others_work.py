"""Two annotators on one image: whoever submits a label does not take away what another drew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baps.label_map import LabelMap
from lib.label_info import LabelInfo, label_values


@dataclass(frozen=True)
class Kept:
    """A label map with what was kept of an earlier one.

    Attributes:
        label_map: the segments.
        values: which value means which label.
        organs: that were kept.
        notes: sentences for who submitted it.
    """

    label_map: LabelMap
    values: dict[str, int]
    organs: tuple[str, ...]
    notes: tuple[str, ...]


def keep_others(
    new: LabelMap,
    new_values: Mapping[str, int],
    said: LabelInfo,
    author: str,
    old: LabelMap,
    earlier: LabelInfo,
    labels: Mapping[str, int],
) -> Kept:
    """Add to a label map the organs that it does not mark and another annotator had marked.

    Of an organ that both marked, the new one holds; so it does where an organ that is kept overlaps with a new one.
    Segments of one annotator may overlap, and do so afterwards. An organ that is marked nowhere is taken for cleared
    where it is the author's own, or where ``slices`` says that it was looked for. Whoever has no name is another one.

    Args:
        new: the new label map.
        new_values: which value of it means which label.
        said: what is known of it.
        author: of it.
        old: the label map that it replaces.
        earlier: what is known of that.
        labels: names and values of the site.
    """
    values, organs, notes = dict(new_values), list[str](), list[str]()
    free, taken = ~new.marked(), {0, *new.values(), *new_values.values()}
    kept: dict[int, NDArray[np.bool_]] = {}
    for organ, value in label_values(earlier, labels, old.names).items():
        marked, other = old.mask(value), earlier.author_of(organ)
        if not marked.any() or (other and other == author):
            continue
        name = other or "nobody named"
        if organ in values and (again := new.mask(values[organ])).any():
            if not np.array_equal(marked, again):
                notes.append(f"{organ} by {name} was replaced; the earlier one is kept on the server.")
            continue
        if organ in values and said.slices is not None:
            continue
        lost = int((marked & ~free).sum())
        if (marked & free).any():
            if organ not in values:
                wanted = labels.get(organ, max(taken) + 1)
                values[organ] = max(taken) + 1 if wanted in taken else wanted
            taken.add(values[organ])
            kept[values[organ]] = marked & free
            organs.append(organ)
        but = f", but for {lost} voxels that are marked otherwise now" if lost else ""
        notes.append(f"{organ} by {name} was kept{but}.")
    return Kept(new.with_masks(kept, names_by_value(values)), values, tuple(organs), tuple(notes))


def names_by_value(values: Mapping[str, int]) -> dict[int, str]:
    """The same the other way round."""
    return {value: name for name, value in values.items()}
