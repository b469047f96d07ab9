from __future__ import annotations

import json
from datetime import date, datetime, timedelta, timezone
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from baps.errors import InputError
from baps.site.audit import AuditFile, read_backwards
from baps.site.audit_search import AuditEntry, AuditFilter, count_by_week, parse_entry, search


def add(audit: AuditFile, count: int = 1, **record: Any) -> None:
    for _ in range(count):
        audit.add({"user": "anna", "role": "annotator", "by": "token", "what": "segment", "status": 200, **record})


def write(audit: AuditFile, *lines: dict[str, Any]) -> None:
    """Write lines without a chain, as of an older release, at any time."""
    with audit.file.open("ab") as file:
        for line in lines:
            file.write(json.dumps(line).encode() + b"\n")


@pytest.fixture
def audit(tmp_path: Path) -> AuditFile:
    return AuditFile(tmp_path / "audit.jsonl")


def every(audit: AuditFile, wanted: AuditFilter = AuditFilter(), **options: Any) -> list[AuditEntry]:
    """Follow the pages to the end."""
    entries, page = [], search(audit, wanted, **options)
    entries += page.entries
    while page.next:
        page = search(audit, wanted, page.next, **options)
        entries += page.entries
    return entries


@pytest.mark.parametrize(
    "content", [b"", b"a", b"a\n", b"a\nbb\n", b"a\n\nbb", b"x" * 70_000 + b"\ny\n" + b"z" * 66_000]
)
def test_lines_are_read_backwards_with_their_places(content: bytes) -> None:
    lines = list(read_backwards(BytesIO(content), len(content)))
    assert [line for _, line in lines] == list(reversed(content.split(b"\n"))) or content == b""
    for place, line in lines:
        assert content[place : place + len(line)] == line
        assert place == 0 or content[place - 1 : place] == b"\n"


def test_lines_come_newest_first_page_by_page(audit: AuditFile) -> None:
    add(audit, 25)
    pages, start = [], ""
    while True:
        page = search(audit, AuditFilter(), start, max_entries=10)
        pages.append([entry.number for entry in page.entries])
        start = page.next
        if not start:
            break
    assert pages == [list(range(25, 15, -1)), list(range(15, 5, -1)), list(range(5, 0, -1))]


def test_pages_go_on_where_they_were_while_lines_are_added_and_files_become_full(tmp_path: Path) -> None:
    audit = AuditFile(tmp_path / "audit.jsonl", max_mb=0)
    add(audit, 20)
    page = search(audit, AuditFilter(), max_entries=5)
    audit._max_bytes = 1  # Every further line begins a file.
    add(audit, 3)
    assert len(list(tmp_path.glob("audit.jsonl.0*"))) == 3
    older = search(audit, AuditFilter(), page.next, max_entries=100)
    assert [entry.number for entry in older.entries] == list(range(15, 0, -1))
    assert [entry.number for entry in every(audit, max_entries=4)] == list(range(23, 0, -1))


def test_filters_match_what_lines_say_and_not_their_text(audit: AuditFile) -> None:
    image = audit.hashed("ct_01")
    add(audit, user="anna", what="save a label", image=image)
    add(audit, user="theo", what="train on anna", about='"user": "anna"')
    add(audit, user="theo", what="fetch all labelled images", images=[audit.hashed("ct_02"), image])
    add(audit, user="änna", what="segment")
    numbers = {
        name: [entry.number for entry in every(audit, wanted)]
        for name, wanted in {
            "user": AuditFilter(user="anna"),
            "unicode": AuditFilter(user="änna"),
            "action": AuditFilter(action="save a label"),
            "image": AuditFilter(image=image),
            "both": AuditFilter(user="theo", image=image),
            "nobody": AuditFilter(user="anna", action="segment"),
        }.items()
    }
    assert numbers == {"user": [1], "unicode": [4], "action": [1], "image": [3, 1], "both": [3], "nobody": []}


def test_a_day_is_one_of_this_machine_and_older_lines_end_the_search(audit: AuditFile) -> None:
    midnight = datetime(2026, 11, 30).astimezone().astimezone(timezone.utc)
    times = [midnight + timedelta(hours=hours) for hours in (-49, -2, -0.01, 0, 12, 23.9, 24)]
    write(audit, *({"time": time.isoformat(timespec="milliseconds"), "what": str(n)} for n, time in enumerate(times)))
    assert [entry.action for entry in every(audit, AuditFilter(day=date(2026, 11, 30)))] == ["5", "4", "3"]
    page = search(audit, AuditFilter(day=date(2026, 11, 30)))
    assert (page.next, page.reached) == ("", times[0])  # The line before the margin ended it.


def test_a_search_ends_in_time_and_says_how_far_it_came(audit: AuditFile) -> None:
    add(audit, 1, user="theo")
    write(audit, *({"time": "2026-11-30T08:00:00.000+00:00", "user": "anna", "n": n} for n in range(2000)))
    ticks = iter(range(10_000))
    page = search(audit, AuditFilter(user="theo"), max_seconds=1.5, clock=lambda: float(next(ticks)))
    assert page.entries == ()
    assert page.next
    assert page.reached == datetime(2026, 11, 30, 8, tzinfo=timezone.utc)
    assert [entry.user for entry in every(audit, AuditFilter(user="theo"), max_seconds=-1)] == ["theo"]


def test_incomplete_and_foreign_lines_are_passed_over(audit: AuditFile) -> None:
    add(audit)
    with audit.file.open("ab") as file:
        file.write(b'{"time": "2026-11-30T08\n[1]\n"text"\n{"n": "x", "status": "y", "images": 3}\n')
    add(audit)
    entries = every(audit)
    assert [entry.number for entry in entries] == [2, None, 1]
    assert (entries[1].time, entries[1].images, entries[1].status) == (None, (), None)
    assert parse_entry(b"{") is None


@pytest.mark.parametrize("start", ["x", "1", "1:", "-1:4", "1:-4", "1:1:1", "9" * 30 + ":" + "9" * 30, "²:1"])
def test_a_wrong_start_is_refused(audit: AuditFile, start: str) -> None:
    add(audit)
    with pytest.raises(InputError, match="no such place"):
        search(audit, AuditFilter(), start)


def test_a_start_in_a_file_that_is_gone_or_beyond_the_end_shows_what_there_is(audit: AuditFile) -> None:
    add(audit, 3)
    assert [entry.number for entry in search(audit, AuditFilter(), "1:999999").entries] == [3, 2, 1]
    assert search(audit, AuditFilter(), "0:5").entries == ()


def test_a_site_without_lines_has_none(audit: AuditFile) -> None:
    assert search(audit, AuditFilter()).entries == ()
    assert {kind for week in count_by_week(audit, date(2026, 11, 30)) for kind in week.counts.values()} == {0}


def test_usage_counts_what_succeeded_by_week(audit: AuditFile) -> None:
    def line(day: int, what: str, **record: Any) -> dict[str, Any]:
        time = datetime(2026, 11, day, 12).astimezone().astimezone(timezone.utc)
        return {"time": time.isoformat(timespec="milliseconds"), "user": "anna", "what": what, "status": 200, **record}

    write(
        audit,
        line(1, "segment"),  # Before the first week.
        line(17, "segment"),
        line(22, "segment", user="theo"),
        line(22, "segment", status=503),
        line(23, "save a label"),
        line(23, "import a label", status=None, by="command"),
        line(24, "start a training"),
        line(24, "look around"),
    )
    weeks = count_by_week(audit, date(2026, 11, 29), weeks=2)
    assert [(week.monday, dict(week.counts), week.users) for week in weeks] == [
        (date(2026, 11, 16), {"clicks": 2, "labels": 0, "trainings": 0}, 2),
        (date(2026, 11, 23), {"clicks": 0, "labels": 2, "trainings": 1}, 1),
    ]
