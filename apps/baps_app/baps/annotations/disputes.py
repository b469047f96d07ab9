"""Find disputes: warn annotators who remove another's segment, and keep the change out of trainings.

A change of a colleague's organ that shares at least half of it (Dice) is an ordinary correction, and is trained on. A
change that shares less is disputed: it is served, because the annotator must be able to continue, but trainings use the
version before it until a trainer confirms the new one, by saving it or with ``baps labels confirm``. An organ is
compared with two versions: the one that is served, and the one that its first author drew or a trainer confirmed last,
so that small changes do not add up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from baps.annotations.label_info import LabelInfo, ReferenceVersion, label_values
from baps.imaging.label_map import LabelMap, Overlaps

MIN_SHARED_DICE = 0.5
"""Smallest Dice (0 to 1) with the earlier organ at which a change is a correction."""


@dataclass(frozen=True)
class SavedLabel:
    """A label as it was saved.

    Attributes:
        version: name of its version.
        label_map: the segments.
        info: information about the label.
    """

    version: str
    label_map: LabelMap
    info: LabelInfo

    def value(self, organ: str, labels: Mapping[str, int]) -> int:
        """Return the value of an organ, or 0.

        Args:
            organ: name of the organ.
            labels: names and values of the site.

        Returns:
            The value, 0 if the organ has none.
        """
        return label_values(self.info, labels, self.label_map.names).get(organ, 0)


@dataclass(frozen=True)
class NewLabel:
    """A label that is about to be saved.

    Attributes:
        label_map: the segments.
        values: value of each label.
        annotated_slices: slices of each label that were annotated, see ``LabelInfo``.
        author: the annotator who saves it.
        drawn: labels that the annotator marked or searched for; the others were only kept.
        confirms: whether the annotator is a trainer, who confirms changes by saving them.
    """

    label_map: LabelMap
    values: Mapping[str, int]
    annotated_slices: Mapping[str, Collection[int]]
    author: str
    drawn: Collection[str]
    confirms: bool


@dataclass
class DisputeResult:
    """Disputes about the organs of other annotators.

    Attributes:
        basis: see ``LabelInfo``.
        disputed: see ``LabelInfo``.
        notes: sentences for the annotator.
    """

    basis: dict[str, ReferenceVersion] = field(default_factory=dict)
    disputed: dict[str, ReferenceVersion] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, dict[str, dict[str, str]]]:
        """Return what is stored with the label, as JSON, without empty entries.

        Returns:
            ``basis`` and ``disputed``, each by organ.
        """
        records = {"basis": self.basis, "disputed": self.disputed}
        return {
            key: {organ: one.model_dump() for organ, one in result.items()} for key, result in records.items() if result
        }


def find_disputes(
    new: NewLabel, earlier: SavedLabel, read_version: Callable[[str], SavedLabel | None], labels: Mapping[str, int]
) -> DisputeResult:
    """Distinguish corrections of other annotators' organs from changes that take them away.

    Args:
        new: the label that is about to be saved.
        earlier: the label that it replaces.
        read_version: reads an earlier version of the label; returns None if it was removed.
        labels: names and values of the site.

    Returns:
        The disputes, and notes for the annotator.
    """
    marked, info = set(earlier.label_map.values()), earlier.info
    values = label_values(info, labels, earlier.label_map.names)
    organs = sorted({organ for organ, value in values.items() if value in marked} | set(info.disputed))
    comparison = _Comparison(new.label_map, new.values, earlier, organs, labels)
    result, comparisons = DisputeResult(), dict[str, _Comparison | None]({earlier.version: comparison})
    for organ in organs:
        disputed, basis = info.disputed.get(organ), info.basis.get(organ)
        if disputed and organ not in new.drawn:
            result.disputed[organ], result.basis[organ] = disputed, basis or disputed
            result.notes.append(f"{organ} is still disputed: trainings use the version of {_name(disputed)}.")
            continue
        if new.confirms and organ in new.drawn:
            if disputed:
                result.notes.append(f"{organ} is confirmed by this save: trainings use it.")
            continue
        reference = disputed or ReferenceVersion(author=info.author_of(organ), version=earlier.version)
        disputed_by = None
        for candidate in (reference, basis):
            if disputed_by or candidate is None or candidate.author == new.author or new.confirms:
                continue
            if candidate.version not in comparisons:
                saved = read_version(candidate.version)
                comparisons[candidate.version] = (
                    _Comparison(new.label_map, new.values, saved, organs, labels) if saved else None
                )
            compared = comparisons[candidate.version]
            if compared is None:  # The version was removed. What was disputed stays disputed.
                disputed_by = disputed
            elif compared.differs_too_much(organ, new.annotated_slices.get(organ)):
                disputed_by = candidate
        if disputed_by:
            result.disputed[organ], result.basis[organ] = disputed_by, basis or disputed_by
            result.notes.append(
                f"This takes {organ} away from the version of {_name(disputed_by)}. Trainings use the earlier {organ} "
                "until a trainer saves this one or confirms it (baps labels confirm)."
            )
        elif basis and not (basis.author == new.author and organ in new.drawn):
            result.basis[organ] = basis
        elif reference.author != new.author and not new.confirms and not comparison.is_same(organ):
            result.basis[organ] = reference
    return result


def is_same(new: LabelMap, values: Mapping[str, int], old: SavedLabel, labels: Mapping[str, int]) -> bool:
    """Return whether a label map marks the same as an earlier one, under the same names.

    Args:
        new: the new label map.
        values: value of each of its labels.
        old: the earlier label.
        labels: names and values of the site.

    Returns:
        Whether it does.
    """
    names = sorted({*values, *label_values(old.info, labels, old.label_map.names)})
    compared = _Comparison(new, values, old, names, labels)
    return all(map(compared.is_same, names))


def _name(reference: ReferenceVersion) -> str:
    return reference.author or "an unnamed annotator"


class _Comparison:
    """Organs of a new label compared with those of an earlier one, counted in one pass.

    Args:
        new: the new label map.
        values: value of each of its labels.
        old: the earlier label.
        organs: names of the organs.
        labels: names and values of the site.
    """

    def __init__(
        self,
        new: LabelMap,
        values: Mapping[str, int],
        old: SavedLabel,
        organs: Sequence[str],
        labels: Mapping[str, int],
    ) -> None:
        old_values = label_values(old.info, labels, old.label_map.names)
        pairs = [(old_values.get(organ, 0), values.get(organ, 0)) for organ in organs]
        self._columns, self._info = {organ: n for n, organ in enumerate(organs)}, old.info
        self._voxels = Overlaps.count(old.label_map, new, pairs)

    def is_same(self, organ: str) -> bool:
        """Return whether an organ is unchanged.

        Args:
            organ: name of the organ.

        Returns:
            Whether it is.
        """
        column = self._columns[organ]
        old, new, both = (counts[:, column] for counts in (self._voxels.old, self._voxels.new, self._voxels.both))
        return bool((old == new).all() and (old == both).all())

    def differs_too_much(self, organ: str, covered: Collection[int] | None) -> bool:
        """Return whether too little of an organ is left, on the slices that were annotated earlier.

        Args:
            organ: name of the organ.
            covered: slices that the new label annotates, or None for all; it says nothing about others.

        Returns:
            Whether it does.
        """
        return differs_too_much(
            self._voxels, self._columns[organ], (self._info.annotated_slices or {}).get(organ), covered
        )


def differs_too_much(
    voxels: Overlaps, pair: int, before: Collection[int] | None, after: Collection[int] | None
) -> bool:
    """Return whether too little of an organ is left, on the slices that the earlier label annotates.

    Args:
        voxels: overlaps of the earlier and the new label.
        pair: index of the organ's pair in ``voxels``.
        before: slices that the earlier label annotates, or None for all.
        after: slices that the new label annotates, or None for all; it says nothing about others.

    Returns:
        Whether the new organ differs too much.
    """
    old, new, both = voxels.old[:, pair], voxels.new[:, pair], voxels.both[:, pair]
    earlier_slices = _slice_selection(before, len(old))
    common_slices = earlier_slices & _slice_selection(after, len(old))
    marked = int(old[earlier_slices].sum())
    return marked > 0 and 2 * int(both[common_slices].sum()) < MIN_SHARED_DICE * (
        marked + int(new[common_slices].sum())
    )


def _slice_selection(slices: Collection[int] | None, depth: int) -> NDArray[np.bool_]:
    """Mark the given slices, (K,); all if none are given."""
    result = np.full(depth, slices is None)
    result[[k for k in slices or () if k < depth]] = True
    return result
