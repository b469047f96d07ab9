"""Search the audit file, newest line first, and count what was done by week. No file is read into memory as a whole."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import BinaryIO

from baps.errors import InputError
from baps.site.audit import AuditFile, read_backwards

_START = b'{"time": "'
"""Beginning of every line, which the time follows."""

_TIME_LENGTH = 23
"""Length of a time in UTC with milliseconds, as in 2026-11-30T08:15:00.000."""

_LINES_PER_CHECK = 512
"""Lines after which the time that a search took is checked."""

_MARGIN = timedelta(days=1)
"""A search for a day ends at lines that are older by this, because the clock of a server may be set back a little."""

_KNOWN = ("time", "user", "role", "by", "what", "image", "adapter", "status", "n", "chain", "images")

USAGE = {
    "clicks": frozenset({"segment"}),
    "labels": frozenset({"save a label", "import a label", "confirm a draft", "store in the PACS"}),
    "trainings": frozenset({"start a training", "adapt to labels"}),
}
"""Actions that count as usage, by kind."""


@dataclass(frozen=True)
class AuditFilter:
    """Which lines to show. Empty fields match all lines.

    Attributes:
        user: Name of the user.
        action: The action, as in ``save a label``.
        image: Keyed hash of the image, see ``AuditFile.hashed``.
        day: The day, in the time zone of this machine.
    """

    user: str = ""
    action: str = ""
    image: str = ""
    day: date | None = None


@dataclass(frozen=True)
class AuditEntry:
    """A line of the audit file.

    Attributes:
        time: When it was written, or None if the line does not say so.
        user: Name of the user, or "" if nobody was known.
        role: Role of the user, or "".
        by: How the user came: ``token``, ``openid``, ``machine``, ``command`` or ``server``; or "".
        action: What was done.
        images: Keyed hashes of the images.
        adapter: The adapter, or "".
        status: HTTP status of the response, or None.
        number: Number of the line in the chain, or None.
        details: Further entries.
    """

    time: datetime | None
    user: str
    role: str
    by: str
    action: str
    images: tuple[str, ...]
    adapter: str
    status: int | None
    number: int | None
    details: Mapping[str, str]


@dataclass(frozen=True)
class AuditPage:
    """A part of the audit file.

    Attributes:
        entries: The lines that match, newest first.
        next: Where to go on, for ``search``, or "" if there are no older lines.
        reached: Time of the oldest line that was read, or None.
    """

    entries: tuple[AuditEntry, ...]
    next: str
    reached: datetime | None


@dataclass(frozen=True)
class Week:
    """What was done in a week.

    Attributes:
        monday: Its first day.
        counts: Number of actions by kind, see ``USAGE``.
        users: Number of different users who did them.
    """

    monday: date
    counts: Mapping[str, int]
    users: int


def search(
    audit: AuditFile,
    wanted: AuditFilter,
    start: str = "",
    max_entries: int = 50,
    max_seconds: float = 0.1,
    clock: Callable[[], float] = time.monotonic,
) -> AuditPage:
    """Search lines, newest first.

    Args:
        audit: The audit file.
        wanted: Which lines to return.
        start: ``AuditPage.next`` of the page before, or "" for the newest lines.
        max_entries: Maximum number of lines to return.
        max_seconds: Time after which the search ends; the next page goes on.
        clock: Returns the time in seconds.

    Returns:
        The lines.

    Raises:
        InputError: If there is no such start.
        OSError: If the files cannot be read.
    """
    matcher, end = _Matcher(wanted), clock() + max_seconds
    entries: list[AuditEntry] = []
    reached = b""
    with audit.opened() as (files, _):
        for number, (file, place, line) in enumerate(_lines(files, start), 1):
            if line.startswith(_START):
                reached = line
            if matcher.is_past(line):
                return AuditPage(tuple(entries), "", _time_of(reached))
            if matcher.may_match(line) and (entry := parse_entry(line)) and matcher.matches(entry):
                entries.append(entry)
            if len(entries) >= max_entries or (number % _LINES_PER_CHECK == 0 and clock() > end):
                is_last = place == 0 and file == _number_of(files, 0)
                return AuditPage(tuple(entries), "" if is_last else f"{file}:{place}", _time_of(reached))
    return AuditPage(tuple(entries), "", _time_of(reached))


def count_by_week(audit: AuditFile, today: date, weeks: int = 16) -> list[Week]:
    """Count clicks, labels and trainings by week. Requests that failed do not count.

    Args:
        audit: The audit file.
        today: The day, in the time zone of this machine.
        weeks: Number of weeks, including the present one.

    Returns:
        The weeks, oldest first.

    Raises:
        OSError: If the files cannot be read.
    """
    mondays = [today - timedelta(days=today.weekday() + 7 * n) for n in reversed(range(weeks))]
    kinds = {action: kind for kind, actions in USAGE.items() for action in actions}
    tokens = tuple(_entry("what", action) for action in kinds)
    counts: dict[date, Counter[str]] = defaultdict(Counter)
    users: dict[date, set[str]] = defaultdict(set)
    first = _utc(mondays[0] - _MARGIN)
    with audit.opened() as (files, _):
        for _, _, line in _lines(files, ""):
            if line.startswith(_START) and line[len(_START) :][:_TIME_LENGTH] < first:
                break
            if not any(token in line for token in tokens):
                continue
            entry = parse_entry(line)
            if entry is None or entry.time is None or entry.action not in kinds or (entry.status or 0) >= 400:
                continue
            day = entry.time.astimezone().date()
            monday = day - timedelta(days=day.weekday())
            counts[monday][kinds[entry.action]] += 1
            users[monday].add(entry.user)
    return [Week(day, {kind: counts[day][kind] for kind in USAGE}, len(users[day])) for day in mondays]


def parse_entry(line: bytes) -> AuditEntry | None:
    """Parse a line.

    Args:
        line: The line.

    Returns:
        The entry, or None if the line is incomplete.
    """
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            return None
    except ValueError:
        return None
    single, several = record.get("image"), record.get("images")
    images = [single] if single else several if isinstance(several, list) else []
    status, number = record.get("status"), record.get("n")
    return AuditEntry(
        _parse_time(record.get("time")),
        _text(record.get("user")),
        _text(record.get("role")),
        _text(record.get("by")),
        _text(record.get("what")),
        tuple(map(str, images)),
        _text(record.get("adapter")),
        status if isinstance(status, int) else None,
        number if isinstance(number, int) else None,
        {key: _text(value) for key, value in record.items() if key not in _KNOWN},
    )


class _Matcher:
    """Compares lines with a filter: first their bytes, which is fast, and then what they say.

    Args:
        wanted: The filter.
    """

    def __init__(self, wanted: AuditFilter) -> None:
        self._wanted = wanted
        self._tokens = [_entry("user", wanted.user)] if wanted.user else []
        self._tokens += [_entry("what", wanted.action)] if wanted.action else []
        self._tokens += [json.dumps(wanted.image).encode()] if wanted.image else []
        day = wanted.day
        self._first, self._end = (_utc(day), _utc(day + timedelta(days=1))) if day else (b"", b"")
        self._past = _utc(day - _MARGIN) if day else b""

    def is_past(self, line: bytes) -> bool:
        """Check whether a line is so much older than the wanted day that all lines before it are.

        Args:
            line: The line.

        Returns:
            Whether it is.
        """
        return bool(self._past) and line.startswith(_START) and line[len(_START) :][:_TIME_LENGTH] < self._past

    def may_match(self, line: bytes) -> bool:
        """Check whether a line has the bytes that a match has.

        Args:
            line: The line.

        Returns:
            Whether it has.
        """
        if not line or not all(token in line for token in self._tokens):
            return False
        return not self._first or self._first <= line[len(_START) :][:_TIME_LENGTH] < self._end

    def matches(self, entry: AuditEntry) -> bool:
        """Check whether an entry matches.

        Args:
            entry: The entry.

        Returns:
            Whether it matches.
        """
        wanted = self._wanted
        return (
            wanted.user in ("", entry.user)
            and wanted.action in ("", entry.action)
            and (not wanted.image or wanted.image in entry.images)
        )


def _lines(files: list[tuple[BinaryIO, int]], start: str) -> Iterator[tuple[int, int, bytes]]:
    """Yield the number of the file, the place and the line, newest first, from a start.

    A full file is renamed to the number that the file it was has here, so that a start stays valid.
    """
    number, place = _parse_start(start)
    for index in reversed(range(len(files))):
        file, size = files[index]
        own = _number_of(files, index)
        if start and own > number:
            continue
        end = min(place, size) if start and own == number else size
        for at, line in read_backwards(file, end):
            if line:
                yield own, at, line


def _number_of(files: list[tuple[BinaryIO, int]], index: int) -> int:
    """Return the number of a file; the one that is written to has the number that it gets when it is full."""
    numbers = [int(suffix) if (suffix := Path(file.name).suffix[1:]).isdecimal() else 0 for file, _ in files]
    return numbers[index] or max(numbers) + 1


def _parse_start(start: str) -> tuple[int, int]:
    number, _, place = start.partition(":")
    if start and not (number.isdecimal() and place.isdecimal() and len(start) < 40):
        raise InputError("The audit file has no such place. Open the page of the audit file again.")
    return (int(number), int(place)) if start else (0, 0)


def _entry(key: str, value: str) -> bytes:
    return f"{json.dumps(key)}: {json.dumps(value)}".encode()


def _utc(day: date) -> bytes:
    """Return the beginning of a day in the time zone of this machine, as lines have it."""
    begin = datetime(day.year, day.month, day.day).astimezone().astimezone(timezone.utc)
    return begin.isoformat(timespec="milliseconds")[:_TIME_LENGTH].encode()


def _time_of(line: bytes) -> datetime | None:
    return _parse_time(line[len(_START) :].partition(b'"')[0].decode(errors="replace"))


def _parse_time(value: object) -> datetime | None:
    try:
        parsed = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)


def _text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)
