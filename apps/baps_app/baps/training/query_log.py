"""What the black box answered, in order, on disk: an adaptation that was broken off goes on from it.

All that an adaptation depends on, beside its data and settings, are the losses that came back, and the masks that the
output-side head learns from. They are written down with the step and the seed that they belong to; on the next run they
are read instead of asked, and everything else is computed again from the same seeds. The result is that of an unbroken
run, bit by bit on a CPU, and no image is paid twice but those of the answer that was cut off.
"""

from __future__ import annotations

import base64
import fcntl
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from baps.adapters.old_records import rename_settings
from baps.blackbox import BlackBox
from baps.errors import BapsError


class QueryLog:
    """The log of one adaptation: a line for what it is of, then a line an answer.

    Args:
        path: of the log, or None to keep none. A log of something else, or of other data or settings, is begun anew.
        about: all that the answers depend on; plain JSON.
        black_box: what is asked.

    Raises:
        BapsError: if another training writes to the log, or it cannot be written.
    """

    def __init__(self, path: Path | None, about: Mapping[str, Any], black_box: BlackBox) -> None:
        self._path, self._black_box = path, black_box
        self._images = 0
        self._file = _open_alone(path) if path else None
        first = json.dumps(about, sort_keys=True)
        lines = _whole_lines(path) if path else []
        same = bool(lines) and _renamed(lines[0]) == json.loads(first)
        self._known = _answers(lines[1:]) if same else []
        self._next = 0
        self.replayed_images = self._known[-1]["images"] if self._known else 0
        """Black-box images whose answers were in the log at the start."""
        if self._file:
            whole = lines[: 1 + len(self._known)] if same else []
            with _sentence():
                self._file.truncate(sum(len(line) + 1 for line in whole))  # A last line that was cut off goes.
        if not same:
            self._write(first)

    def close(self) -> None:
        """Let others use the log."""
        if self._file:
            self._file.close()

    @property
    def images(self) -> int:
        """Black-box images up to here, those of the log among them."""
        return self._images

    @contextmanager
    def counting(self) -> Iterator[None]:
        """What the black box is asked meanwhile is counted, and never recalled."""
        before = self._black_box.images_queried
        yield
        self._images += self._black_box.images_queried - before

    def discard(self) -> None:
        """Remove the log, whose answers are worth nothing any more."""
        if self._path:
            self._path.unlink(missing_ok=True)

    def get_or_query(self, what: Mapping[str, int | str], ask: Callable[[], Sequence[float]]) -> list[float]:
        """The numbers of the log, or new ones, which are written down before anything depends on them.

        Args:
            what: which answer: step, seed and so on.
            ask: asks the black box.

        Raises:
            BapsError: if the log has another answer in this place, or cannot be written.
        """
        values: list[float] = self._recall(what, lambda: [float(value) for value in ask()])
        return values

    def recall_masks(self, what: Mapping[str, int | str], ask: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Likewise the masks, (N, H, W) uint8."""

        def asked() -> dict[str, Any]:
            masks = ask()
            return {"shape": masks.shape, "zlib": base64.b64encode(zlib.compress(masks.tobytes())).decode()}

        kept = self._recall(what, asked)
        return np.frombuffer(zlib.decompress(base64.b64decode(kept["zlib"])), np.uint8).reshape(kept["shape"])

    def _recall(self, what: Mapping[str, int | str], ask: Callable[[], Any]) -> Any:
        if self._next < len(self._known):
            record = self._known[self._next]
            if {key: record.get(key) for key in what} != dict(what):
                raise BapsError(f"The log {self._path} does not belong to this training. Delete it and train again.")
            self._next += 1
            self._images = record["images"]
            return record["values"]
        with self.counting():
            values = ask()
        self._write(json.dumps({**what, "values": values, "images": self._images}))
        return values

    def _write(self, line: str) -> None:
        if self._file is None:
            return
        with _sentence():
            self._file.write(line.encode() + b"\n")


@contextmanager
def _sentence() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BapsError(
            f"The training cannot go on: its log cannot be written ({error.strerror}). Free some space and train "
            "again; it goes on from where it was."
        ) from error


def _open_alone(path: Path) -> IO[bytes]:
    """The log, unbuffered, for this adaptation alone; two that write to one would mix their answers."""
    with _sentence():
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise BapsError(
                f"Another training writes to the log {path}. Wait until it has ended, or stop it."
            ) from None
        except OSError:  # Some network disks know no locks.
            pass
    return file


def _whole_lines(path: Path) -> list[str]:
    """The lines of a log up to the first that is not whole."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:  # There is none yet, or it cannot be written either, which is told then.
        return []
    whole = []
    for line in lines[:-1]:
        try:
            json.loads(line)
            whole.append(line.decode("ascii"))
        except ValueError:
            break
    return whole


def _renamed(line: str) -> Any:
    """What a line says a log is of; settings by today's names, also in a log of version 0.1."""
    about = json.loads(line)
    if isinstance(about, dict) and isinstance(about.get("settings"), dict):
        about["settings"] = rename_settings(about["settings"])
    return about


def _answers(lines: Sequence[str]) -> list[dict[str, Any]]:
    """What lines say, up to the first that is no answer."""
    answers = []
    for line in lines:
        answer = json.loads(line)
        if not (isinstance(answer, dict) and "values" in answer and isinstance(answer.get("images"), int)):
            break
        answers.append(answer)
    return answers
