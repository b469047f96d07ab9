"""Merge the labels of two annotators on one image, so that submitting a label does not delete what another one drew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from baps.annotations.label_info import LabelInfo, label_values
from baps.imaging.label_map import LabelMap, Overlaps


@dataclass(frozen=True)
class MergedLabels:
    """A label map with the organs that were kept from an earlier one.

    Attributes:
        label_map: the segments.
        values: value of each label.
        organs: organs that were kept.
        notes: sentences for the annotator.
    """

    label_map: LabelMap
    values: dict[str, int]
    organs: tuple[str, ...]
    notes: tuple[str, ...]


def merge_concurrent_labels(
    new: LabelMap,
    new_values: Mapping[str, int],
    info: LabelInfo,
    author: str,
    old: LabelMap,
    old_info: LabelInfo,
    labels: Mapping[str, int],
) -> MergedLabels:
    """Add to a label map the organs that it does not mark and another annotator had marked.

    Of an organ that both marked, the new one is used; where a kept organ overlaps with a new one, the new one is used
    too. Segments of one annotator may overlap, and still do afterwards. An organ that is no longer marked counts as
    erased if it is the author's own, or if ``slices`` says that it was searched for. An annotator without a name counts
    as another one.

    Args:
        new: the new label map.
        new_values: value of each of its labels.
        info: information about it.
        author: its author.
        old: the label map that it replaces.
        old_info: information about the old label map.
        labels: names and values of the site.

    Returns:
        The merged label map.
    """
    values, organs, notes = dict(new_values), list[str](), list[str]()
    used_values, present = {0, *new.values(), *new_values.values()}, set(new.values())
    before = set(old.values())
    old_values = {organ: value for organ, value in label_values(old_info, labels, old.names).items() if value in before}
    others = [organ for organ in old_values if not (author and old_info.author_of(organ) == author)]
    pairs = Overlaps.count(old, new, [(old_values[organ], new_values.get(organ, 0)) for organ in others])
    overwritten = Overlaps.count(old, _as_one_segment(new), [(old_values[organ], 1) for organ in others]).both.sum(0)
    value_map: dict[int, int] = {}
    for n, organ in enumerate(others):
        name = old_info.author_of(organ) or "an unnamed annotator"
        voxels = int(pairs.old[:, n].sum())
        if new_values.get(organ) in present:
            if not voxels == pairs.new[:, n].sum() == pairs.both[:, n].sum():
                notes.append(f"{organ} by {name} was replaced; the earlier version is kept on the server.")
            continue
        if organ in values and info.slices is not None:
            notes.append(f"{organ} by {name} was erased; the earlier version is kept on the server.")
            continue
        overwritten_voxels = int(overwritten[n])
        if overwritten_voxels < voxels:
            if organ not in values:
                value = labels.get(organ, max(used_values) + 1)
                values[organ] = max(used_values) + 1 if value in used_values else value
            used_values.add(values[organ])
            value_map[old_values[organ]] = values[organ]
            organs.append(organ)
        exception = (
            f", except {overwritten_voxels} voxels that are marked differently now" if overwritten_voxels else ""
        )
        notes.append(f"{organ} by {name} was kept{exception}.")
    merged = new.filled_from(old, value_map, names_by_value(values)) if value_map else new
    return MergedLabels(LabelMap(merged.layers, names_by_value(values)), values, tuple(organs), tuple(notes))


def _as_one_segment(labels: LabelMap) -> LabelMap:
    """Merge all segments into one with the value 1."""
    return LabelMap((labels.foreground().view(np.uint8),))


def names_by_value(values: Mapping[str, int]) -> dict[int, str]:
    """Invert a mapping from names to values.

    Args:
        values: values by name.

    Returns:
        Names by value.
    """
    return {value: name for name, value in values.items()}
