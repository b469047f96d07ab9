"""Compare people who drew the same organ on the same image: the Dice of their newest versions."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from monailabel.interfaces.datastore import Datastore

from baps.annotations.history import Version
from baps.errors import BapsError
from baps.imaging.label_map import Overlaps
from baps.server.datastores.dicomweb import PacsDatastore
from baps.server.datastores.folder import StudiesDatastore
from baps.server.web.label_table import FINAL
from baps.server.web.label_versions import LoadedVersion, latest_by_author, read_version

if TYPE_CHECKING:
    from baps.server.app import BapsApp

_SECONDS = 20.0
"""Time after which no further pair is compared. The next call goes on."""


@dataclass(frozen=True)
class ReaderPair:
    """Two people who drew the same organ on the same image.

    Attributes:
        image: Name of the image.
        organ: The organ.
        first: The person whose version is older.
        second: The other one.
        versions: Names of the two versions.
        dice: Dice on the slices that both annotated, 0 to 1; None if it says nothing, see ``shared_dice``, or a version
            cannot be read.
        slices: Number of slices that both annotated.
    """

    image: str
    organ: str
    first: str
    second: str
    versions: tuple[str, str]
    dice: float | None
    slices: int


@dataclass(frozen=True)
class Agreement:
    """Agreement of two people on an organ.

    Attributes:
        organ: The organ.
        people: The two people, in alphabetical order.
        pairs: The images that both drew it on, the one with the lowest Dice first.
        mean: Mean Dice.
    """

    organ: str
    people: tuple[str, str]
    pairs: tuple[ReaderPair, ...]
    mean: float


@dataclass(frozen=True)
class ReaderTable:
    """What is known of the agreement of people.

    Attributes:
        pairs: All pairs that were compared.
        remaining: Number of pairs that are still to be compared.
        skipped: Number of pairs in a PACS whose image or labels were not fetched to this server yet.
    """

    pairs: tuple[ReaderPair, ...]
    remaining: int
    skipped: int

    def agreements(self) -> list[Agreement]:
        """Summarise the pairs by organ and people, the lowest mean first."""
        groups: dict[tuple[str, tuple[str, str]], list[ReaderPair]] = defaultdict(list)
        for pair in self.pairs:
            if pair.dice is not None:
                low, high = sorted((pair.first, pair.second))
                groups[pair.organ, (low, high)].append(pair)
        agreements = []
        for (organ, people), pairs in groups.items():
            values = [pair.dice for pair in pairs if pair.dice is not None]
            pairs.sort(key=lambda pair: pair.dice or 0.0)
            agreements.append(Agreement(organ, people, tuple(pairs), sum(values) / len(values)))
        return sorted(agreements, key=lambda one: one.mean)


@dataclass(frozen=True)
class _Candidate:
    image: str
    organ: str
    people: tuple[str, str]
    versions: tuple[str, str]


class Readers:
    """Compares people. Each pair of versions is compared once.

    Args:
        app: The app.
        clock: Returns the time in seconds.
    """

    def __init__(self, app: BapsApp, clock: Callable[[], float] = time.monotonic) -> None:
        self._app, self._clock, self._lock = app, clock, threading.Lock()
        self._dice: dict[_Candidate, tuple[float | None, int]] = {}
        self._candidates: dict[str, tuple[object, tuple[_Candidate, ...]]] = {}

    def compare(self) -> ReaderTable:
        """Compare people on all images, for some seconds.

        Raises:
            BapsError: If the PACS does not respond.
        """
        datastore, end = self._app.datastore(), self._clock() + _SECONDS
        with self._lock:
            if isinstance(datastore, PacsDatastore):
                candidates, skipped = _pacs_candidates(datastore)
            elif isinstance(datastore, StudiesDatastore):
                candidates, skipped = list(self._folder_candidates(datastore)), 0
            else:
                candidates, skipped = [], 0
            for candidate in candidates:
                if candidate not in self._dice and self._clock() < end:
                    self._dice[candidate] = self._compare(datastore, candidate)
            known = set(candidates)
            self._dice = {one: value for one, value in self._dice.items() if one in known}
            pairs = [
                ReaderPair(one.image, one.organ, *one.people, one.versions, *self._dice[one])
                for one in candidates
                if one in self._dice
            ]
        return ReaderTable(tuple(pairs), len(candidates) - len(pairs), skipped)

    def _folder_candidates(self, datastore: StudiesDatastore) -> Iterator[_Candidate]:
        """Yield the pairs of a folder. The records of versions are read again only if there are new ones."""
        history, listed = datastore.history, set(datastore._datastore.objects)
        for image, tag in history.labels():
            if tag != FINAL or image not in listed:
                continue
            names = history.version_names(image, tag)
            known = self._candidates.get(image)
            if known is None or known[0] != names:
                known = names, tuple(_pairs_of(image, latest_by_author(history, image)) if len(names) > 1 else ())
                self._candidates[image] = known
            yield from known[1]

    def _compare(self, datastore: Datastore, candidate: _Candidate) -> tuple[float | None, int]:
        labels = self._app.site.labels
        try:
            loaded = [read_version(datastore, labels, candidate.image, FINAL, one) for one in candidate.versions]
        except BapsError:
            return None, 0
        return shared_dice(loaded[0], loaded[1], candidate.organ)


def shared_dice(first: LoadedVersion, second: LoadedVersion, organ: str) -> tuple[float | None, int]:
    """Compute the Dice of an organ on the slices that both versions annotate.

    On other slices, what is not marked is not background.

    Args:
        first: A version.
        second: Another version on the same image.
        organ: The organ.

    Returns:
        The Dice, 0 to 1, or None if neither version marks the organ on these slices, or both mark the same voxels of
        the whole volume: then the second person confirmed what the first had drawn, and drew nothing. And the number of
        these slices.
    """
    pair = (first.values.get(organ, 0), second.values.get(organ, 0))
    counts = Overlaps.count(first.label_map, second.label_map, [pair])
    depth = len(counts.both)
    shared = [
        k
        for k in range(depth)
        if all(k in one.annotated.get(organ, frozenset(range(depth))) for one in (first, second))
    ]
    if (counts.old == counts.both).all() and (counts.new == counts.both).all():
        return None, len(shared)
    old, new, both = (int(np.sum(part[shared, 0])) for part in (counts.old, counts.new, counts.both))
    return (2 * both / (old + new) if old + new else None), len(shared)


def _pairs_of(image: str, organs: Mapping[str, Mapping[str, Version]]) -> Iterator[_Candidate]:
    for organ, by_author in organs.items():
        versions = {author: version.name for author, version in by_author.items()}
        for one, other in combinations(sorted(versions, key=lambda author: versions[author]), 2):
            yield _Candidate(image, organ, (one, other), (versions[one], versions[other]))


def _pacs_candidates(datastore: PacsDatastore) -> tuple[list[_Candidate], int]:
    """Return the pairs of a PACS that can be compared without fetching anything, and the number of the others."""
    drawn: dict[tuple[str, str], dict[str, tuple[str, float, bool]]] = defaultdict(dict)
    for image, segment, reason in datastore.label_listing():  # The newest first.
        if segment.confirmed and not reason and segment.author:
            entry = f"{segment.instance} {segment.name}", segment.when.timestamp(), bool(datastore.is_fetched(image))
            drawn[image, segment.name].setdefault(segment.author, entry)
    candidates, skipped = [], 0
    for (image, organ), by_author in drawn.items():
        for one, other in combinations(sorted(by_author, key=lambda author: by_author[author][1]), 2):
            if not by_author[one][2]:
                skipped += 1
                continue
            versions = by_author[one][0], by_author[other][0]
            candidates.append(_Candidate(image, organ, (one, other), versions))
    return candidates, skipped
