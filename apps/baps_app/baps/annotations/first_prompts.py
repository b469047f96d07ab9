"""Keep the first prompt that a user made on each slice, so that adapters can be judged with real prompts.

Later prompts on a slice are corrections of the mask that was served, which would favour the adapter that served it.
No image and no name is kept: images are hashes.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

from baps.errors import InputError
from baps.prompts import Prompt

_MAX_PROMPTS = 200_000
"""Prompts that are kept; the oldest are removed."""


class FirstPrompts:
    """The first prompts of a site. Thread-safe, also across processes.

    Args:
        file: SQLite file; it is created with the first prompt.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._lock = file, threading.Lock()

    def add(self, volume: str, label: str, index: int, prompt: Prompt) -> None:
        """Keep a prompt unless there is one on the slice.

        Args:
            volume: hash of the image.
            label: the label.
            index: index of the slice across K.
            prompt: the prompt, (X, Y) in pixels of the slice.

        Raises:
            sqlite3.Error: if it cannot be written.
        """
        points = json.dumps([prompt.positive, prompt.negative, prompt.box])
        with self._lock, closing(self._open()) as database, database:
            row = database.execute(
                "INSERT OR IGNORE INTO prompts (volume, label, slice, points) VALUES (?, ?, ?, ?)",
                (volume, label, index, points),
            )
            if row.lastrowid and row.lastrowid % 1000 == 0:
                database.execute("DELETE FROM prompts WHERE rowid <= ?", (row.lastrowid - _MAX_PROMPTS,))

    def read(self, volume: str, label: str) -> dict[int, Prompt]:
        """Return the prompts on an image.

        Args:
            volume: hash of the image.
            label: the label.

        Returns:
            Prompts by slice; empty if there are none, or the file is damaged.
        """
        if not self._file.exists():
            return {}
        try:
            with self._lock, closing(self._open()) as database:
                rows = database.execute(
                    "SELECT slice, points FROM prompts WHERE volume = ? AND label = ? ORDER BY slice", (volume, label)
                ).fetchall()
            return {int(index): _prompt(points) for index, points in rows}
        except (sqlite3.Error, ValueError, TypeError, InputError):
            return {}

    def _open(self) -> sqlite3.Connection:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self._file, timeout=1)
        database.execute("PRAGMA synchronous = OFF")
        database.execute(
            "CREATE TABLE IF NOT EXISTS prompts (volume TEXT, label TEXT, slice INTEGER, points TEXT, "
            "UNIQUE (volume, label, slice))"
        )
        return database


def _prompt(points: str) -> Prompt:
    positive, negative, box = json.loads(points)
    return Prompt(
        tuple((float(x), float(y)) for x, y in positive),
        tuple((float(x), float(y)) for x, y in negative),
        None if box is None else (float(box[0]), float(box[1]), float(box[2]), float(box[3])),
    )
