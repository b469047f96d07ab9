"""Choose which versions of labels may be removed: old ones that are neither served nor needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import pairwise

from baps.annotations.history import LabelHistory, Version

_TRAINING_DURATION = timedelta(days=1)
"""Longest time between a training's reading of its labels and the storing of its adapter."""


@dataclass(frozen=True)
class RetentionRule:
    """Which versions to remove; if both limits are given, a version must exceed both.

    Attributes:
        keep: number of newest versions that stay, at least one.
        days: versions that were replaced fewer than this many days ago stay.
    """

    keep: int = 1
    days: int = 0


def prune(
    history: LabelHistory,
    rule: RetentionRule,
    adapter_times: Iterable[datetime],
    image: str = "",
    dry_run: bool = False,
    now: datetime | None = None,
) -> Iterator[tuple[str, str, list[str]]]:
    """Remove the versions of labels that a rule does not keep.

    Versions that are served or that a training has used are never removed. Trainings mark what they use. Adapters of
    earlier releases only have a time; what was served at that time stays.

    Args:
        history: labels of the folder of studies.
        rule: which versions to remove.
        adapter_times: when each adapter of the site was made, see ``AdapterStore.creation_times``.
        image: name of one image, or "" for all.
        dry_run: remove nothing.
        now: the current time, or None for the clock's.

    Yields:
        Image, tag and the names of the versions, for each label that has any.

    Raises:
        BapsError: if they cannot be removed.
    """
    now, times = now or datetime.now(timezone.utc), list(adapter_times)
    for name, tag in history.labels():
        if image in ("", name):
            with history.lock(name, tag):
                removable = [version.name for version in _removable(history.versions(name, tag), rule, times, now)]
                if removable and not dry_run:
                    history.remove(name, tag, removable, "pruned")
            if removable:
                yield name, tag, removable


def _removable(
    versions: Sequence[Version], rule: RetentionRule, times: Sequence[datetime], now: datetime
) -> list[Version]:
    """List the versions that a rule does not keep, oldest first."""
    replaced_at = {version.name: following.saved_at for version, following in pairwise(versions)}
    newest = versions[-1].info if versions else {}
    references = {version["version"] for key in ("disputed", "basis") for version in (newest.get(key) or {}).values()}
    return [
        version
        for version in versions[: -max(rule.keep, 1)]
        if replaced_at[version.name] <= now - timedelta(days=rule.days)
        and not version.used_in_training
        and not version.info.get("damaged")
        and version.name not in references  # See ``baps.annotations.disputes``.
        and not any(
            version.saved_at <= time and time - _TRAINING_DURATION <= replaced_at[version.name] for time in times
        )
    ]
