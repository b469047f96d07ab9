"""Whose organ is it? An annotator who takes away what another one drew is told so, and no training takes their word.

A change of a colleague's organ that shares at least half of it (Dice) is an ordinary correction, and is trained on. One
that shares less is disputed: it is served, for who draws has to go on, but trainings take the version before it until a
trainer confirms the new one, by saving it or by ``baps labels confirm``. An organ is judged by two versions: the one
that is served, and the one that its first author drew or a trainer confirmed last; so small steps do not add up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from baps.annotations.label_info import LabelInfo, Standing, label_values
from baps.imaging.label_map import LabelMap, Overlaps

SHARED = 0.5
"""Dice from which on a change is a correction."""


@dataclass(frozen=True)
class Saved:
    """A label as it was saved.

    Attributes:
        version: its name.
        label_map: the segments.
        info: what is known of it.
    """

    version: str
    label_map: LabelMap
    info: LabelInfo

    def value(self, organ: str, labels: Mapping[str, int]) -> int:
        """Return the value of an organ, or 0."""
        return label_values(self.info, labels, self.label_map.names).get(organ, 0)


@dataclass(frozen=True)
class New:
    """A label that is about to be saved.

    Attributes:
        label_map: the segments.
        values: which value means which label.
        annotated_slices: see ``LabelInfo``.
        author: who saves it.
        drawn: the labels that they marked or looked for themselves; others were only kept.
        confirms: whether their word is enough: a trainer's.
    """

    label_map: LabelMap
    values: Mapping[str, int]
    annotated_slices: Mapping[str, Collection[int]]
    author: str
    drawn: Collection[str]
    confirms: bool


@dataclass
class Judgement:
    """What becomes of the organs of others.

    Attributes:
        basis, disputed: see ``LabelInfo``.
        notes: sentences for who saves.
    """

    basis: dict[str, Standing] = field(default_factory=dict)
    disputed: dict[str, Standing] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def record(self) -> dict[str, dict[str, dict[str, str]]]:
        """As it is kept with a label; nothing where there is nothing to keep."""
        said = {"basis": self.basis, "disputed": self.disputed}
        return {key: {organ: one.model_dump() for organ, one in found.items()} for key, found in said.items() if found}


def judge(
    new: New, earlier: Saved, read_version: Callable[[str], Saved | None], labels: Mapping[str, int]
) -> Judgement:
    """Tell corrections of the organs of others from what takes them away.

    Args:
        new: what is about to be saved.
        earlier: what it replaces.
        read_version: reads an earlier version of the label; None if it is not there any more.
        labels: names and values of the site.
    """
    marked, info = set(earlier.label_map.values()), earlier.info
    values = label_values(info, labels, earlier.label_map.names)
    organs = sorted({organ for organ, value in values.items() if value in marked} | set(info.disputed))
    before = _Compared(new.label_map, new.values, earlier, organs, labels)
    found, known = Judgement(), dict[str, _Compared | None]({earlier.version: before})
    for organ in organs:
        disputed, basis = info.disputed.get(organ), info.basis.get(organ)
        if disputed and organ not in new.drawn:
            found.disputed[organ], found.basis[organ] = disputed, basis or disputed
            found.notes.append(f"{organ} is disputed still: trainings take what {_name(disputed)} drew.")
            continue
        if new.confirms and organ in new.drawn:
            if disputed:
                found.notes.append(f"{organ} is confirmed with this: it counts in trainings.")
            continue
        standing = disputed or Standing(author=info.author_of(organ), version=earlier.version)
        lost = None
        for rival in (standing, basis):
            if lost or rival is None or rival.author == new.author or new.confirms:
                continue
            if rival.version not in known:
                saved = read_version(rival.version)
                known[rival.version] = _Compared(new.label_map, new.values, saved, organs, labels) if saved else None
            compared = known[rival.version]
            if compared is None:  # Removed meanwhile. What was disputed stays so.
                lost = disputed
            elif compared.shares_less(organ, new.annotated_slices.get(organ)):
                lost = rival
        if lost:
            found.disputed[organ], found.basis[organ] = lost, basis or lost
            found.notes.append(
                f"This takes {organ} away from what {_name(lost)} drew. Trainings take the earlier {organ} until a "
                "trainer saves this one or confirms it (baps labels confirm)."
            )
        elif basis and not (basis.author == new.author and organ in new.drawn):
            found.basis[organ] = basis
        elif standing.author != new.author and not new.confirms and not before.is_same(organ):
            found.basis[organ] = standing
    return found


def is_same(new: LabelMap, values: Mapping[str, int], old: Saved, labels: Mapping[str, int]) -> bool:
    """Return whether a label map marks what an earlier one does, under the same names."""
    names = sorted({*values, *label_values(old.info, labels, old.label_map.names)})
    compared = _Compared(new, values, old, names, labels)
    return all(map(compared.is_same, names))


def _name(standing: Standing) -> str:
    return standing.author or "nobody named"


class _Compared:
    """Organs of a new label beside those of an earlier one, counted in one pass."""

    def __init__(
        self, new: LabelMap, values: Mapping[str, int], old: Saved, organs: Sequence[str], labels: Mapping[str, int]
    ) -> None:
        before = label_values(old.info, labels, old.label_map.names)
        pairs = [(before.get(organ, 0), values.get(organ, 0)) for organ in organs]
        self._columns, self._info = {organ: n for n, organ in enumerate(organs)}, old.info
        self._voxels = Overlaps.count(old.label_map, new, pairs)

    def is_same(self, organ: str) -> bool:
        """Whether an organ is where it was."""
        column = self._columns[organ]
        old, new, both = (counts[:, column] for counts in (self._voxels.old, self._voxels.new, self._voxels.both))
        return bool((old == new).all() and (old == both).all())

    def shares_less(self, organ: str, covered: Collection[int] | None) -> bool:
        """Whether too little of an organ is left, on the slices that the earlier one looked at.

        Args:
            organ: which.
            covered: slices that the new one looked at; on others it says nothing. None for all.
        """
        return shares_less(self._voxels, self._columns[organ], (self._info.annotated_slices or {}).get(organ), covered)


def shares_less(voxels: Overlaps, pair: int, before: Collection[int] | None, after: Collection[int] | None) -> bool:
    """Return whether too little of an organ is left, on the slices that the earlier label looked at.

    Args:
        voxels: counted of the earlier and the new one.
        pair: the organ's.
        before: slices that the earlier one looked at; None for all.
        after: slices that the new one looked at; on others it says nothing. None for all.
    """
    old, new, both = voxels.old[:, pair], voxels.new[:, pair], voxels.both[:, pair]
    theirs = _chosen(before, len(old))
    ours = theirs & _chosen(after, len(old))
    marked = int(old[theirs].sum())
    return marked > 0 and 2 * int(both[ours].sum()) < SHARED * (marked + int(new[ours].sum()))


def _chosen(slices: Collection[int] | None, depth: int) -> NDArray[np.bool_]:
    """Which of all slices are meant, (K,); all where none are named."""
    found = np.full(depth, slices is None)
    found[[k for k in slices or () if k < depth]] = True
    return found
