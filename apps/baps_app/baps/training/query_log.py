"""Log the black box's answers on disk, so that an interrupted adaptation continues from them.

Besides its data and settings, an adaptation depends only on the losses that were returned, and on the masks that the
output-side head learns from. Each answer is logged with its step and seed. On the next run, logged answers are replayed
instead of queried, and everything else is computed again from the same seeds. The result equals that of an
uninterrupted run, bit by bit on a CPU, and no image is queried twice except those of an answer that was cut off.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from baps.adapters.old_records import rename_settings
from baps.errors import BapsError


class Queried(Protocol):
    """A model whose queries are counted: a black box that answers on images or in 3D."""

    @property
    def images_queried(self) -> int:
        """Number of images queried so far."""


class QueryLog:
    """The log of one adaptation: a line that identifies the adaptation, then one line per answer.

    Args:
        path: path of the log, or None to keep none. A log of another adaptation, or of other data or settings, is
            overwritten.
        about: all that the answers depend on; plain JSON.
        black_box: the model that is queried.

    Raises:
        BapsError: if another training writes to the log, or it cannot be written.
    """

    def __init__(self, path: Path | None, about: Mapping[str, Any], black_box: Queried) -> None:
        self._path, self._black_box = path, black_box
        self._images = 0
        self._file: IO[bytes] | None = None
        self._lock: FileLock | None = None
        if path:
            self._file, self._lock = _open_exclusively(path)
        first = json.dumps(about, sort_keys=True)
        lines = _complete_lines(path) if path else []
        same = bool(lines) and _read_facts(lines[0]) == json.loads(first)
        self._replayed = _answers(lines[1:]) if same else []
        self._next = 0
        self.replayed_images = self._replayed[-1]["images"] if self._replayed else 0
        """Black-box images whose answers were in the log at the start."""
        if self._file:
            complete = lines[: 1 + len(self._replayed)] if same else []
            with _convert_os_error():
                self._file.truncate(sum(len(line) + 1 for line in complete))  # Remove a last line that was cut off.
        if not same:
            self._write(first)

    def close(self) -> None:
        """Release the log for others."""
        if self._file and self._lock and self._lock.is_locked:
            self._file.close()
            Path(self._lock.lock_file).unlink(missing_ok=True)  # Still locked, so no other training has taken it.
            self._lock.release()

    @property
    def images(self) -> int:
        """Black-box images so far, including replayed ones."""
        return self._images

    @contextmanager
    def count_queries(self) -> Iterator[None]:
        """Count the images that are queried while the context lasts, without logging or replaying the answers."""
        before = self._black_box.images_queried
        yield
        self._images += self._black_box.images_queried - before

    def discard(self) -> None:
        """Delete the log, because its answers are no longer valid."""
        if self._path:
            self._path.unlink(missing_ok=True)

    def get_or_query(self, key: Mapping[str, int | str], query: Callable[[], Sequence[float]]) -> list[float]:
        """Return logged numbers, or query new ones, which are logged before anything depends on them.

        Args:
            key: identifies the answer: step, seed and so on.
            query: queries the black box.

        Returns:
            The numbers.

        Raises:
            BapsError: if the log has another answer in this place, or cannot be written.
        """
        values: list[float] = self._get_or_query(key, lambda: [float(value) for value in query()])
        return values

    def get_or_query_masks(
        self, key: Mapping[str, int | str], query: Callable[[], NDArray[np.uint8]]
    ) -> NDArray[np.uint8]:
        """Return logged masks, or query new ones, as ``get_or_query``.

        Args:
            key: identifies the answer.
            query: queries the black box for masks, uint8 of any shape.

        Returns:
            The masks, of that shape.

        Raises:
            BapsError: if the log has another answer in this place, or cannot be written.
        """

        def query_encoded() -> dict[str, Any]:
            masks = query()
            return {"shape": masks.shape, "zlib": base64.b64encode(zlib.compress(masks.tobytes())).decode()}

        encoded = self._get_or_query(key, query_encoded)
        return np.frombuffer(zlib.decompress(base64.b64decode(encoded["zlib"])), np.uint8).reshape(encoded["shape"])

    def _get_or_query(self, key: Mapping[str, int | str], query: Callable[[], Any]) -> Any:
        if self._next < len(self._replayed):
            record = self._replayed[self._next]
            if {key: record.get(key) for key in key} != dict(key):
                raise BapsError(f"The log {self._path} does not belong to this training. Delete it and train again.")
            self._next += 1
            self._images = record["images"]
            return record["values"]
        with self.count_queries():
            values = query()
        self._write(json.dumps({**key, "values": values, "images": self._images}))
        return values

    def _write(self, line: str) -> None:
        if self._file is None:
            return
        with _convert_os_error():
            self._file.write(line.encode() + b"\n")


@contextmanager
def _convert_os_error() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BapsError(
            f"The training cannot continue: its log cannot be written ({error.strerror}). Free some space and train "
            "again; it continues from where it stopped."
        ) from error


def _open_exclusively(path: Path) -> tuple[IO[bytes], FileLock]:
    """Open the log, unbuffered, for this adaptation only; the answers of two writers would be mixed.

    Returns:
        The open file, and the lock that is held.

    Raises:
        BapsError: if another training writes to it, or it cannot be opened.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0, mode=0o600)
    with _convert_os_error():
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab", buffering=0)
        try:
            lock.acquire()
        except Timeout:
            file.close()
            raise BapsError(
                f"Another training writes to the log {path}. Wait until it has ended, or stop it."
            ) from None
    return file, lock


def _complete_lines(path: Path) -> list[str]:
    """Read the lines of a log up to the first incomplete one."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:  # There is no log yet, or writing will fail too, which is reported then.
        return []
    complete = []
    for line in lines[:-1]:
        try:
            json.loads(line)
            complete.append(line.decode("ascii"))
        except ValueError:
            break
    return complete


def _read_facts(line: str) -> Any:
    """Parse what a log is of; settings of version 0.1 get their current names."""
    about = json.loads(line)
    if isinstance(about, dict) and isinstance(about.get("settings"), dict):
        about["settings"] = rename_settings(about["settings"])
    return about


def _answers(lines: Sequence[str]) -> list[dict[str, Any]]:
    """Parse lines up to the first that is not an answer."""
    answers = []
    for line in lines:
        answer = json.loads(line)
        if not (isinstance(answer, dict) and "values" in answer and isinstance(answer.get("images"), int)):
            break
        answers.append(answer)
    return answers
