"""Two annotators on one image: whoever submits a label does not take away what another drew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from baps.annotations.label_info import LabelInfo, label_values
from baps.imaging.label_map import LabelMap, Overlaps


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


def merge_concurrent_labels(
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
    taken, present = {0, *new.values(), *new_values.values()}, set(new.values())
    before = set(old.values())
    theirs = {organ: value for organ, value in label_values(earlier, labels, old.names).items() if value in before}
    others = [organ for organ in theirs if not (author and earlier.author_of(organ) == author)]
    pairs = Overlaps.count(old, new, [(theirs[organ], new_values.get(organ, 0)) for organ in others])
    covered = Overlaps.count(old, _any_of(new), [(theirs[organ], 1) for organ in others]).both.sum(0)
    numbers: dict[int, int] = {}
    for n, organ in enumerate(others):
        name = earlier.author_of(organ) or "nobody named"
        voxels = int(pairs.old[:, n].sum())
        if new_values.get(organ) in present:
            if not voxels == pairs.new[:, n].sum() == pairs.both[:, n].sum():
                notes.append(f"{organ} by {name} was replaced; the earlier one is kept on the server.")
            continue
        if organ in values and said.slices is not None:
            notes.append(f"{organ} by {name} was erased; the earlier one is kept on the server.")
            continue
        lost = int(covered[n])
        if lost < voxels:
            if organ not in values:
                wanted = labels.get(organ, max(taken) + 1)
                values[organ] = max(taken) + 1 if wanted in taken else wanted
            taken.add(values[organ])
            numbers[theirs[organ]] = values[organ]
            organs.append(organ)
        but = f", but for {lost} voxels that are marked otherwise now" if lost else ""
        notes.append(f"{organ} by {name} was kept{but}.")
    merged = new.filled_from(old, numbers, names_by_value(values)) if numbers else new
    return Kept(LabelMap(merged.layers, names_by_value(values)), values, tuple(organs), tuple(notes))


def _any_of(labels: LabelMap) -> LabelMap:
    """One segment, of the value 1, with all that is marked."""
    return LabelMap((labels.foreground().view(np.uint8),))


def names_by_value(values: Mapping[str, int]) -> dict[int, str]:
    """The same the other way round."""
    return {value: name for name, value in values.items()}
