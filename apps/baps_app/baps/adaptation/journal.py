"""What the black box answered, in order, on disk: an adaptation that was broken off goes on from it.

All that an adaptation depends on, beside its data and settings, are the losses that came back. They are written down
with the step and the seed that they belong to; on the next run they are read instead of asked, and everything else is
computed again from the same seeds. The result is that of an unbroken run, bit by bit on a CPU, and no image is paid
twice but those of the answer that was cut off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..blackbox import BlackBox
from ..errors import BapsError


class Journal:
    """The log of one adaptation: a line for what it is of, then a line an answer.

    Args:
        path: of the log, or None to keep none. A log of something else, or of other data or settings, is begun anew.
        about: all that the answers depend on; plain JSON.
        black_box: what is asked.
    """

    def __init__(self, path: Path | None, about: Mapping[str, Any], black_box: BlackBox) -> None:
        self._path, self._black_box = path, black_box
        self._images = 0
        first = json.dumps(about, sort_keys=True)
        lines = _whole_lines(path) if path else []
        same = lines[:1] == [first]
        self._known = _answers(lines[1:]) if same else []
        self._next = 0
        self.recalled_images = self._known[-1]["images"] if self._known else 0
        """Black-box images whose answers were in the log at the start."""
        if path and same:
            whole = lines[: 1 + len(self._known)]
            os.truncate(path, sum(len(line) + 1 for line in whole))  # A last line that was cut off goes.
        elif path:
            self._write("w", first)

    @property
    def images(self) -> int:
        """Black-box images up to here, those of the log among them."""
        return self._images

    def recall(self, what: Mapping[str, int | str], ask: Callable[[], Sequence[float]]) -> list[float]:
        """The answer of the log, or a new one, which is written down before anything depends on it.

        Args:
            what: which answer: step, seed and so on.
            ask: asks the black box.

        Raises:
            BapsError: if the log has another answer in this place, or cannot be written.
        """
        if self._next < len(self._known):
            record = self._known[self._next]
            if {key: record.get(key) for key in what} != dict(what):
                raise BapsError(f"The log {self._path} does not belong to this training. Delete it and train again.")
            self._next += 1
            self._images = record["images"]
            values: list[float] = record["values"]
            return values
        before = self._black_box.images_asked
        values = [float(value) for value in ask()]
        self._images += self._black_box.images_asked - before
        self._write("a", json.dumps({**what, "values": values, "images": self._images}))
        return values

    def _write(self, mode: str, line: str) -> None:
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open(mode) as file:
                file.write(line + "\n")
        except OSError as error:
            raise BapsError(
                f"The training cannot go on: its log cannot be written ({error.strerror}). Free some space and train "
                "again; it goes on from where it was."
            ) from error


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


def _answers(lines: Sequence[str]) -> list[dict[str, Any]]:
    """What lines say, up to the first that is no answer."""
    answers = []
    for line in lines:
        answer = json.loads(line)
        if not (isinstance(answer, dict) and "values" in answer and isinstance(answer.get("images"), int)):
            break
        answers.append(answer)
    return answers
