"""Register of the labels in a PACS: a database file in the cache, so that no list of them is held in memory.

It is created again if it is missing or broken. All of it can be requested from the PACS again, except which labels
cannot be read; they are then read again.
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

_RETRY_SECONDS = 3600.0
"""Seconds after which an image is searched for again that a label refers to and the PACS did not have."""


class LabelRegister:
    """The segments of label objects in the PACS, and the image of each.

    All methods raise a BapsError if the file cannot be read or written.

    Args:
        file: Database file in the cache.
        query: Query that selects the images. If it has changed, the images of all labels are searched for again.

    Attributes:
        changes: Number of changes by this process.
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
        self._sql.execute("SELECT author FROM segments LIMIT 1")  # Fails for a file of an older server.
        facts = {"query": self._query, "version": version("baps-monailabel")}
        if dict(self._sql.execute("SELECT name, value FROM facts")) != facts:
            with self._transaction():
                self._sql.execute("UPDATE segments SET image = '', looked = 0, reason = '', reader = ''")
                self._sql.executemany("REPLACE INTO facts VALUES (?, ?)", facts.items())

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._convert_errors():
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
    def _convert_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise BapsError(
                f"The register of the labels in the PACS cannot be used ({error}). Make room on the disk of the cache. "
                f"If that does not help, stop the server and delete {self._file.name} there."
            ) from error

    def _select(self, query: str, *parameters: object) -> list[tuple]:  # type: ignore[type-arg]
        with self._lock, self._convert_errors():
            return self._sql.execute(query, parameters).fetchall()

    def new_listing_id(self) -> int:
        """Return the number of a new listing of all series of labels in the PACS."""
        ((last,),) = self._select("SELECT COALESCE(MAX(sweep), 0) FROM series")
        return int(last) + 1

    def is_known(self, series: str, count: str, listing_id: int) -> bool:
        """Return whether a series of labels is registered with this number of objects, and record that it was listed.

        Args:
            series: SeriesInstanceUID.
            count: Number of its objects, or "" if it is not known.
            listing_id: Number of the listing that contains it.
        """
        with self._transaction():
            updated = self._sql.execute(
                "UPDATE series SET listed = 1, sweep = MAX(sweep, ?) WHERE uid = ? AND count = ? AND count != ''",
                (listing_id, series, count),
            )
            return bool(updated.rowcount)

    def register_series(
        self, study: str, series: str, count: str, listing_id: int, segments: Sequence[StoredSegment]
    ) -> None:
        """Register a listed series. Segments that are registered already stay unchanged; missing ones are removed.

        Args:
            study: StudyInstanceUID.
            series: SeriesInstanceUID.
            count: Number of its objects, or "" if it is not known.
            listing_id: Number of the listing that contains it.
            segments: All segments of the series.
        """
        with self._transaction():
            # Another listing with a higher number may contain the series meanwhile.
            newest_listing = "SELECT MAX(?, COALESCE((SELECT sweep FROM series WHERE uid = ?), 0))"
            self._sql.execute(
                f"REPLACE INTO series VALUES (?, ?, ?, 1, ({newest_listing}))",  # noqa: S608
                (series, study, count, listing_id, series),
            )
            present = {segment.instance for segment in segments}
            for (instance,) in self._sql.execute("SELECT DISTINCT instance FROM segments WHERE series = ?", (series,)):
                if instance not in present:
                    self._sql.execute("DELETE FROM segments WHERE instance = ?", (instance,))
            self._insert(segments)

    def keep_series(self, series: str, listing_id: int) -> None:
        """Record that a series of labels was listed, although its content could not be read.

        Args:
            series: SeriesInstanceUID.
            listing_id: Number of the listing that contains it.
        """
        with self._transaction():
            self._sql.execute("UPDATE series SET sweep = MAX(sweep, ?) WHERE uid = ?", (listing_id, series))

    def add(self, segments: Sequence[StoredSegment], counts: bool) -> None:
        """Register an object that was just stored: not every PACS lists it at once.

        Args:
            segments: All segments of the object.
            counts: Whether their image counts as labelled.
        """
        with self._transaction():
            for segment in segments:
                row = segment.series, segment.study
                self._sql.execute("INSERT OR IGNORE INTO series VALUES (?, ?, '', 0, 0)", row)
            self._insert(segments)
            self._sql.executemany(
                "UPDATE segments SET counts = ? WHERE instance = ? AND name = ?",
                [(counts, segment.instance, segment.name) for segment in segments],
            )

    def _insert(self, segments: Sequence[StoredSegment]) -> None:
        self._sql.executemany(
            "INSERT OR IGNORE INTO segments (instance, name, series, study, images, made, confirmed, author) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    segment.instance,
                    segment.name,
                    segment.series,
                    segment.study,
                    json.dumps(segment.images),
                    segment.when.timestamp(),
                    segment.confirmed,
                    segment.author,
                )
                for segment in segments
            ],
        )

    def end_listing(self, listing_id: int, study: str | None = None) -> None:
        """Remove the series that earlier listings contained and this one does not.

        Args:
            listing_id: Number of the listing.
            study: StudyInstanceUID of the study that was listed, or None for all.
        """
        removed = "SELECT uid FROM series WHERE listed = 1 AND sweep < ? AND (? IS NULL OR study = ?)"
        with self._transaction():
            self._sql.execute(f"DELETE FROM segments WHERE series IN ({removed})", (listing_id, study, study))  # noqa: S608
            self._sql.execute(f"DELETE FROM series WHERE uid IN ({removed})", (listing_id, study, study))  # noqa: S608

    def without_image(self) -> list[tuple[str, str, str, tuple[str, ...]]]:
        """Return the objects whose image is to be searched for: instance, study, series and referenced series."""
        rows = self._select(
            "SELECT DISTINCT instance, study, series, images FROM segments WHERE image = '' AND looked < ?",
            time.time() - _RETRY_SECONDS,
        )
        return [(instance, study, series, tuple(json.loads(images))) for instance, study, series, images in rows]

    def set_image(self, instance: str, image: str) -> None:
        """Record the image of an object.

        Args:
            instance: SOPInstanceUID of the object.
            image: Name of the image, or "" if the PACS does not have it.
        """
        with self._transaction():
            self._sql.execute(
                "UPDATE segments SET image = ?, looked = ? WHERE instance = ?", (image, time.time(), instance)
            )

    def image_of(self, instance: str) -> str:
        """Return the image of an object, or "" if the PACS does not have it or it was not searched for yet.

        Args:
            instance: SOPInstanceUID of the object.
        """
        rows = self._select("SELECT image FROM segments WHERE instance = ? LIMIT 1", instance)
        return str(rows[0][0]) if rows else ""

    def segments(self, image: str | None = None) -> Iterator[tuple[str, StoredSegment]]:
        """Yield the segments that a person drew or confirmed, each with its image, the newest first.

        Args:
            image: Name of one image, or None for all.
        """
        for row in self._select(
            "SELECT image, study, series, instance, images, made, name, author FROM segments WHERE image != '' "
            "AND confirmed AND (? IS NULL OR image = ?) ORDER BY made DESC",
            image,
            image,
        ):
            image_id, study, series, instance, images, made, name, author = row
            when = datetime.fromtimestamp(made, timezone.utc)
            yield image_id, StoredSegment(study, series, instance, tuple(json.loads(images)), when, name, True, author)

    def listing(self, of_image: str | None = None) -> Iterator[tuple[str, StoredSegment, str]]:
        """Yield all segments whose image is known, also those that are not confirmed or cannot be read.

        Args:
            of_image: Name of one image, or None for all.

        Yields:
            The image, the segment, and why it cannot be read, or "". They are sorted by image, the newest first.
        """
        for row in self._select(
            "SELECT image, study, series, instance, images, made, name, confirmed, author, reason FROM segments "
            "WHERE image != '' AND (? IS NULL OR image = ?) ORDER BY image, made DESC",
            of_image,
            of_image,
        ):
            image, study, series, instance, images, made, name, confirmed, author, reason = row
            when, references = datetime.fromtimestamp(made, timezone.utc), tuple(json.loads(images))
            segment = StoredSegment(study, series, instance, references, when, name, bool(confirmed), author)
            yield image, segment, reason

    def labelled(self) -> Iterator[tuple[str, str]]:
        """Yield the study and the name of each labelled image, sorted by name."""
        yield from self._select(
            "SELECT MIN(study), image FROM segments WHERE image != '' AND confirmed AND counts "
            "GROUP BY image ORDER BY image"
        )

    def labelled_among(self, images: Collection[str]) -> set[str]:
        """Return the labelled images among some images.

        Args:
            images: Names of images.
        """
        rows = self._select(
            "SELECT DISTINCT image FROM segments WHERE confirmed AND counts AND image IN "
            "(SELECT value FROM json_each(?))",
            json.dumps(list(images)),
        )
        return {image for (image,) in rows}

    def unverified(self, limit: int) -> list[tuple[str, StoredSegment]]:
        """Return segments that were stored through this server and not read back yet, each with its image.

        Args:
            limit: Maximum number of segments.
        """
        keys = set(
            self._select(
                "SELECT instance, name FROM segments "
                "WHERE image != '' AND confirmed AND NOT counts AND reason = '' LIMIT ?",
                limit,
            )
        )
        if not keys:
            return []
        return [(image, segment) for image, segment in self.segments() if (segment.instance, segment.name) in keys]

    def reason(self, segment: StoredSegment, image_state: str) -> str:
        """Return why a segment cannot be read, or "" if it can, or was not read yet.

        Args:
            segment: The segment.
            image_state: State of the image with which it was read. It changes when the image gets more slices.
        """
        rows = self._select(
            "SELECT reason FROM segments WHERE instance = ? AND name = ? AND reader = ?",
            segment.instance,
            segment.name,
            image_state,
        )
        return str(rows[0][0]) if rows else ""

    def set_read(self, segment: StoredSegment, image_state: str, reason: str = "") -> None:
        """Record that a segment was read, or why it cannot be read. Then its image does not count as labelled by it.

        Args:
            segment: The segment.
            image_state: State of the image with which it was read.
            reason: Why it cannot be read, or "".
        """
        with self._transaction():
            self._sql.execute(
                "UPDATE segments SET counts = ?, reason = ?, reader = ? WHERE instance = ? AND name = ?",
                (not reason, reason, image_state, segment.instance, segment.name),
            )
