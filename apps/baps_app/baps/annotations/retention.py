"""Which versions of labels may be removed: old ones, that are not served and that nothing stands on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import pairwise

from baps.annotations.history import LabelHistory, Version

_BEFORE = timedelta(days=1)
"""A training may have read its labels so long before its adapter was kept."""


@dataclass(frozen=True)
class Rule:
    """Which versions are too many; each of the two must hold where both are given.

    Attributes:
        keep: so many of the newest stay, at least one.
        days: those that were replaced less than so many days ago stay.
    """

    keep: int = 1
    days: int = 0


def prune(
    history: LabelHistory,
    rule: Rule,
    adapter_times: Iterable[datetime],
    image: str = "",
    dry_run: bool = False,
    now: datetime | None = None,
) -> Iterator[tuple[str, str, list[str]]]:
    """Remove the versions of labels that a rule does not keep; never one that is served, or that a training has used.

    Trainings note what they use. Of adapters of earlier releases only the time is known: what was served then stays.

    Args:
        history: of the folder of studies.
        rule: says which.
        adapter_times: when each adapter of the site was made, see ``AdapterStore.times``.
        image: one alone, or "" for all.
        dry_run: remove nothing.
        now: the time.

    Yields:
        Image, tag and the names of the versions, of each label that has any.

    Raises:
        BapsError: if they cannot be removed.
    """
    now, times = now or datetime.now(timezone.utc), list(adapter_times)
    for name, tag in history.labels():
        if image in ("", name):
            with history.lock(name, tag):
                gone = [one.name for one in _beyond(history.versions(name, tag), rule, times, now)]
                if gone and not dry_run:
                    history.remove(name, tag, gone, "pruned")
            if gone:
                yield name, tag, gone


def _beyond(versions: Sequence[Version], rule: Rule, times: Sequence[datetime], now: datetime) -> list[Version]:
    """The versions, oldest first, that a rule does not keep."""
    replaced = {one.name: following.when for one, following in pairwise(versions)}
    newest = versions[-1].info if versions else {}
    judged_by = {one["version"] for key in ("disputed", "basis") for one in (newest.get(key) or {}).values()}
    return [
        one
        for one in versions[: -max(rule.keep, 1)]
        if replaced[one.name] <= now - timedelta(days=rule.days)
        and not one.is_evidence
        and not one.info.get("damaged")
        and one.name not in judged_by  # By which changes of a label are judged, see ``baps.annotations.disputes``.
        and not any(one.when <= time and time - _BEFORE <= replaced[one.name] for time in times)
    ]
