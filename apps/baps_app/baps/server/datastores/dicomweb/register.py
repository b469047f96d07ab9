"""What is known of the labels in a PACS, in a file of the cache: nothing of it is held in memory.

It is made anew where it is missing or broken: all of it can be asked of the PACS again, but for what turned out to be
unreadable, which is then found out again.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from baps.errors import BapsError
from baps.server.datastores.dicomweb.stored_segments import StoredSegment

_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS series (uid TEXT PRIMARY KEY, study TEXT, count TEXT, listed INTEGER, sweep INTEGER);
CREATE TABLE IF NOT EXISTS segments (
    instance TEXT, name TEXT, series TEXT, study TEXT, images TEXT, made REAL, confirmed INTEGER,
    author TEXT DEFAULT '',
    image TEXT DEFAULT '', looked REAL DEFAULT 0,
    counts INTEGER DEFAULT 1, reason TEXT DEFAULT '', reader TEXT DEFAULT '',
    PRIMARY KEY (instance, name)
);
CREATE INDEX IF NOT EXISTS by_image ON segments (image);
CREATE INDEX IF NOT EXISTS by_series ON segments (series);
"""

_LOOK_AGAIN = 3600.0
"""Seconds until an image is looked for again that a label refers to and the PACS has not."""


class LabelRegister:
    """The segments of the PACS, and which image each belongs to.

    Args:
        file: in the cache.
        query: that the images were chosen by; with another one they are looked for anew.
    """

    def __init__(self, file: Path, query: str) -> None:
        self._file, self._query, self._lock = file, query, threading.RLock()
        self.changes = 0
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._open()
        except (sqlite3.DatabaseError, BapsError):
            file.unlink(missing_ok=True)
            self._open()

    def _open(self) -> None:
        self._sql = sqlite3.connect(self._file, timeout=30, check_same_thread=False, isolation_level=None)
        self._file.chmod(0o600)
        self._sql.executescript(_TABLES)
        self._sql.execute("SELECT author FROM segments LIMIT 1")  # A file of an older server is made anew.
        facts = {"query": self._query, "version": version("baps-monailabel")}
        if dict(self._sql.execute("SELECT name, value FROM facts")) != facts:
            with self._changing():
                self._sql.execute("UPDATE segments SET image = '', looked = 0, reason = '', reader = ''")
                self._sql.executemany("REPLACE INTO facts VALUES (?, ?)", facts.items())

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock, self._told():
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._sql.execute("COMMIT")
            except BaseException:
                if self._sql.in_transaction:
                    self._sql.execute("ROLLBACK")
                raise
            self.changes += 1

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise BapsError(
                f"What is known of the labels in the PACS cannot be kept ({error}). Make room on the disk of the "
                f"cache. If that is no help, stop the server and delete {self._file.name} there."
            ) from error

    def _all(self, question: str, *given: object) -> list[tuple]:  # type: ignore[type-arg]
        with self._lock, self._told():
            return self._sql.execute(question, given).fetchall()

    def next_sweep(self) -> int:
        """Return a number for a look at all series of labels."""
        ((last,),) = self._all("SELECT COALESCE(MAX(sweep), 0) FROM series")
        return int(last) + 1

    def is_known(self, series: str, count: str, sweep: int) -> bool:
        """Return whether a series of labels was described when it had as many objects, and note that it is there."""
        with self._changing():
            found = self._sql.execute(
                "UPDATE series SET listed = 1, sweep = MAX(sweep, ?) WHERE uid = ? AND count = ? AND count != ''",
                (sweep, series, count),
            )
            return bool(found.rowcount)

    def describe(self, study: str, series: str, count: str, sweep: int, found: Sequence[StoredSegment]) -> None:
        """Note all that a listed series holds; what is known of its segments stays."""
        with self._changing():
            known = "SELECT MAX(?, COALESCE((SELECT sweep FROM series WHERE uid = ?), 0))"  # Two looks may meet.
            self._sql.execute(
                f"REPLACE INTO series VALUES (?, ?, ?, 1, ({known}))",  # noqa: S608
                (series, study, count, sweep, series),
            )
            there = {segment.instance for segment in found}
            for (instance,) in self._sql.execute("SELECT DISTINCT instance FROM segments WHERE series = ?", (series,)):
                if instance not in there:
                    self._sql.execute("DELETE FROM segments WHERE instance = ?", (instance,))
            self._insert(found)

    def keep(self, series: str, sweep: int) -> None:
        """Note that a series of labels is there, of which nothing new is known."""
        with self._changing():
            self._sql.execute("UPDATE series SET sweep = MAX(sweep, ?) WHERE uid = ?", (sweep, series))

    def add(self, found: Sequence[StoredSegment], counts: bool) -> None:
        """Note an object that was stored just now: not every PACS lists at once what it has."""
        with self._changing():
            for one in found:
                self._sql.execute("INSERT OR IGNORE INTO series VALUES (?, ?, '', 0, 0)", (one.series, one.study))
            self._insert(found)
            self._sql.executemany(
                "UPDATE segments SET counts = ? WHERE instance = ? AND name = ?",
                [(counts, one.instance, one.name) for one in found],
            )

    def _insert(self, found: Sequence[StoredSegment]) -> None:
        self._sql.executemany(
            "INSERT OR IGNORE INTO segments (instance, name, series, study, images, made, confirmed, author) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    one.instance,
                    one.name,
                    one.series,
                    one.study,
                    json.dumps(one.images),
                    one.when.timestamp(),
                    one.confirmed,
                    one.author,
                )
                for one in found
            ],
        )

    def end_sweep(self, sweep: int, study: str | None = None) -> None:
        """Forget the listed series that a look did not find, in one study or all."""
        gone = "SELECT uid FROM series WHERE listed = 1 AND sweep < ? AND (? IS NULL OR study = ?)"
        with self._changing():
            self._sql.execute(f"DELETE FROM segments WHERE series IN ({gone})", (sweep, study, study))  # noqa: S608
            self._sql.execute(f"DELETE FROM series WHERE uid IN ({gone})", (sweep, study, study))  # noqa: S608

    def without_image(self) -> list[tuple[str, str, str, tuple[str, ...]]]:
        """Return instance, study, series and referenced series of the objects whose image is to be looked for."""
        found = self._all(
            "SELECT DISTINCT instance, study, series, images FROM segments WHERE image = '' AND looked < ?",
            time.time() - _LOOK_AGAIN,
        )
        return [(instance, study, series, tuple(json.loads(images))) for instance, study, series, images in found]

    def set_image(self, instance: str, image: str) -> None:
        """Note which image an object belongs to, or "" for none that is there."""
        with self._changing():
            self._sql.execute(
                "UPDATE segments SET image = ?, looked = ? WHERE instance = ?", (image, time.time(), instance)
            )

    def image_of(self, instance: str) -> str:
        """Return the image that an object belongs to, or "" if it is not there or was not looked for."""
        found = self._all("SELECT image FROM segments WHERE instance = ? LIMIT 1", instance)
        return str(found[0][0]) if found else ""

    def segments(self, image: str | None = None) -> Iterator[tuple[str, StoredSegment]]:
        """Yield the image and the segment of all that a person drew or confirmed, the newest first."""
        for row in self._all(
            "SELECT image, study, series, instance, images, made, name, author FROM segments WHERE image != '' "
            "AND confirmed AND (? IS NULL OR image = ?) ORDER BY made DESC",
            image,
            image,
        ):
            where, study, series, instance, images, made, name, author = row
            when = datetime.fromtimestamp(made, timezone.utc)
            yield where, StoredSegment(study, series, instance, tuple(json.loads(images)), when, name, True, author)

    def labelled(self) -> Iterator[tuple[str, str]]:
        """Yield study and image of those that have a label that counts, by image."""
        yield from self._all(
            "SELECT MIN(study), image FROM segments WHERE image != '' AND confirmed AND counts "
            "GROUP BY image ORDER BY image"
        )

    def labelled_among(self, images: Collection[str]) -> set[str]:
        """Return those of some images that have a label that counts."""
        asked = json.dumps(list(images))
        found = self._all(
            "SELECT DISTINCT image FROM segments WHERE confirmed AND counts AND image IN "
            "(SELECT value FROM json_each(?))",
            asked,
        )
        return {image for (image,) in found}

    def awaiting(self, most: int) -> list[tuple[str, StoredSegment]]:
        """Return image and segment of some that were stored here and not read back yet."""
        found = self._all(
            "SELECT instance, name FROM segments "
            "WHERE image != '' AND confirmed AND NOT counts AND reason = '' LIMIT ?",
            most,
        )
        waiting = set(found)
        return [(image, one) for image, one in self.segments() if (one.instance, one.name) in waiting] if found else []

    def reason(self, segment: StoredSegment, reader: str) -> str:
        """Return why a segment cannot be read, or "" if it can or nobody tried.

        Args:
            segment: which.
            reader: what it was read with: an image that has grown is another one.
        """
        found = self._all(
            "SELECT reason FROM segments WHERE instance = ? AND name = ? AND reader = ?",
            segment.instance,
            segment.name,
            reader,
        )
        return str(found[0][0]) if found else ""

    def note(self, segment: StoredSegment, reader: str, reason: str = "") -> None:
        """Note that a segment was read or, with a reason, that it cannot be: then it does not count."""
        with self._changing():
            self._sql.execute(
                "UPDATE segments SET counts = ?, reason = ?, reader = ? WHERE instance = ? AND name = ?",
                (not reason, reason, reader, segment.instance, segment.name),
            )
