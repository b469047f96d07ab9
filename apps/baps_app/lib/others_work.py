"""Two annotators on one image: whoever submits a labelmap does not take away what another drew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.label_info import LabelInfo, label_values


@dataclass(frozen=True)
class Kept:
    """A labelmap with what was kept of an earlier one.

    Attributes:
        voxels: (I, J, K).
        values: which value means which label.
        organs: that were kept.
        notes: sentences for who submitted it.
    """

    voxels: NDArray[np.integer[Any]]
    values: dict[str, int]
    organs: tuple[str, ...]
    notes: tuple[str, ...]


def keep_others(
    voxels: NDArray[np.integer[Any]],
    said: LabelInfo,
    author: str,
    earlier_voxels: NDArray[np.integer[Any]],
    earlier: LabelInfo,
    labels: Mapping[str, int],
) -> Kept:
    """Add to a labelmap the organs that it does not mark and another annotator had marked.

    Of an organ that both marked, the new one holds; so it does where organs overlap. An organ that is marked nowhere is
    taken for cleared where it is the author's own, or where ``slices`` says that it was looked for. Whoever has no name
    is another one.

    Args:
        voxels: the new labelmap, (I, J, K).
        said: what is known of it.
        author: of it.
        earlier_voxels: the labelmap that it replaces, (I, J, K).
        earlier: what is known of that.
        labels: names and values of the site.
    """
    values, earlier_values = label_values(said, labels), label_values(earlier, labels)
    merged, organs, notes = voxels.copy(), [], []
    for organ, value in earlier_values.items():
        marked, other = earlier_voxels == value, earlier.author_of(organ)
        if not marked.any() or (other and other == author):
            continue
        name = other or "nobody named"
        new = voxels == values[organ] if organ in values else np.zeros_like(marked)
        if new.any():
            if not np.array_equal(marked, new):
                notes.append(f"{organ} by {name} was replaced; the earlier one is kept on the server.")
            continue
        if organ in values and said.slices is not None:
            continue
        free = marked & (voxels == 0)
        lost = int(marked.sum() - free.sum())
        if free.any():
            values[organ] = _free_value(organ, values, merged, labels)
            merged = np.where(free, values[organ], merged)
            organs.append(organ)
        but = f", but for {lost} voxels that are marked otherwise now" if lost else ""
        notes.append(f"{organ} by {name} was kept{but}.")
    return Kept(merged, values, tuple(organs), tuple(notes))


def _free_value(
    organ: str,
    values: Mapping[str, int],
    merged: NDArray[np.integer[Any]],
    labels: Mapping[str, int],
) -> int:
    """A value that means the organ already, or nothing yet; the site's own where it can be had."""
    if organ in values:
        return values[organ]
    taken = {0, *values.values(), *np.unique(merged).tolist()}
    wanted = labels.get(organ, max(taken) + 1)
    return max(taken) + 1 if wanted in taken else wanted
