"""What of the requests goes into the audit file, and how often.

Each request of somebody who is known that reads or changes what is of patients has a line. Viewers fetch a series from
a PACS in hundreds of requests: of those that are alike, one line in ten minutes, and so of what is refused. Requests of
nobody who is known are counted, so that nobody can fill the disk: a line for the first of a kind, and then one a minute
with their number.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from fastapi.responses import StreamingResponse

from baps.errors import BapsError
from baps.server.request_context import RequestContext
from baps.site.audit import AuditFile

logger = logging.getLogger(__name__)

_ALIKE_SECONDS = 600.0
_COUNTED_SECONDS = 60.0
_MOST_ALIKE = 4096
_IMAGES_A_LINE = 500
_BLOCK = 1 << 16


@dataclass
class _Count:
    """Requests of one kind, of nobody who is known.

    Attributes:
        written: when a line was written last, in seconds.
        waiting: requests since then.
    """

    written: float
    waiting: int = 0


class Audit:
    """Notes requests in an audit file.

    Args:
        file: the file.
        clock: of seconds.
    """

    def __init__(self, file: AuditFile, clock: Callable[[], float] = time.monotonic) -> None:
        self.file, self._clock, self._lock = file, clock, threading.Lock()
        self._alike: OrderedDict[tuple[object, ...], float] = OrderedDict()
        self._counts: dict[tuple[str, int], _Count] = {}

    def note(self, asked: RequestContext, status: int) -> None:
        """Note a request that was answered; where that fails, the log says so and the answer stands."""
        try:
            lines = [*self._waiting(at_least=_COUNTED_SECONDS), *self._lines(asked, status)]
            for line in lines:
                self.file.add(line)
        except (OSError, BapsError) as error:
            logger.error("A line of the audit file %s could not be written (%s).", self.file.file, type(error).__name__)

    def end(self) -> None:
        """Write the numbers that wait for their minute, and all lines onto the disk."""
        try:
            for line in self._waiting(at_least=0):
                self.file.add(line)
            self.file.sync()
        except (OSError, BapsError) as error:
            logger.error("The audit file %s could not be ended (%s).", self.file.file, type(error).__name__)

    def read(self) -> StreamingResponse:
        """Send the whole file, with those that were full before, for an admin."""
        opened = self.file.opened()
        files, _ = opened.__enter__()

        def content() -> Iterator[bytes]:
            try:
                for file, size in files:
                    yield from _beginning(file, size)
            finally:
                opened.__exit__(None, None, None)

        length = str(sum(size for _, size in files))
        return StreamingResponse(content(), media_type="application/jsonl", headers={"Content-Length": length})

    def _lines(self, asked: RequestContext, status: int) -> Iterator[dict[str, Any]]:
        what, asker, now = _meaning(asked), asked.asker, self._clock()
        if asker is None:
            if self._counts_alone(what, status, now):
                return
        elif (asked.kind is None or asked.kind.repeats or status == 403) and self._is_alike(asked, status, now):
            return
        line = {
            "user": asker.name if asker else None,
            "role": asker.role.value if asker else None,
            "by": asker.by if asker else None,
            "what": what,
            "image": self.file.hashed(asked.image) if asked.image else None,
            "adapter": asked.adapter or None,
            "status": status,
        }
        images = [self.file.hashed(image) for image in asked.images]
        for start in range(0, max(len(images), 1), _IMAGES_A_LINE):
            several = {"images": images[start : start + _IMAGES_A_LINE], "count": len(images)} if images else {}
            yield {**line, **several}
        for also in asked.also:
            yield {**line, "what": also}

    def _counts_alone(self, what: str, status: int, now: float) -> bool:
        """Count a request of nobody who is known; whether that is all, or it is the first of its kind."""
        with self._lock:
            count = self._counts.get((what, status))
            if count is None:
                self._counts[what, status] = _Count(now)
                return False
            count.waiting += 1
            return True

    def _waiting(self, at_least: float) -> Iterator[dict[str, Any]]:
        """The lines of what was counted, if the last ones are so many seconds ago."""
        now, due = self._clock(), []
        with self._lock:
            for kind, count in list(self._counts.items()):
                if now - count.written < at_least:
                    continue
                if count.waiting:
                    due.append((kind, count.waiting))
                    self._counts[kind] = _Count(now)
                else:
                    del self._counts[kind]
        nobody = {"user": None, "role": None, "by": None}
        for (what, status), number in due:
            yield {**nobody, "what": what, "image": None, "adapter": None, "status": status, "count": number}

    def _is_alike(self, asked: RequestContext, status: int, now: float) -> bool:
        """Whether a request like this one has a line of the last ten minutes."""
        key = (asked.name, _meaning(asked), asked.image, status >= 400)
        with self._lock:
            written = self._alike.get(key)
            if written is not None and now - written < _ALIKE_SECONDS:
                return True
            self._alike[key] = now
            self._alike.move_to_end(key)
            while len(self._alike) > _MOST_ALIKE:
                self._alike.popitem(last=False)
            return False


def _meaning(asked: RequestContext) -> str:
    if asked.asker is None and (asked.kind is None or asked.kind.role is not None):
        return "ask without leave"  # Whatever for: else there were as many kinds to count as paths.
    return asked.kind.meaning if asked.kind else "what is not served"


def _beginning(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The first bytes of a file, in blocks."""
    file.seek(0)
    while size and (block := file.read(min(size, _BLOCK))):
        size -= len(block)
        yield block
