"""Record requests in the audit file.

Each request of a user that reads or changes data of patients gets a line. Viewers send hundreds of requests to fetch a
series from a PACS: of equal ones, and of refused ones, one gets a line in ten minutes. Requests of unknown users are
counted, so that they cannot fill the disk: the first of each kind gets a line, and then one line per minute has their
number.
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

_REPEAT_SECONDS = 600.0
_COUNTED_SECONDS = 60.0
_MAX_REMEMBERED = 4096
_IMAGES_PER_LINE = 500
_BLOCK = 1 << 16


@dataclass
class _Count:
    """The number of requests of one kind from unknown users.

    Attributes:
        written: Time of the last line, in seconds.
        waiting: Requests since then.
    """

    written: float
    waiting: int = 0


class Audit:
    """Records requests in an audit file.

    Args:
        file: The file.
        clock: Returns the time in seconds.
    """

    def __init__(self, file: AuditFile, clock: Callable[[], float] = time.monotonic) -> None:
        self.file, self._clock, self._lock = file, clock, threading.Lock()
        self._repeats: OrderedDict[tuple[object, ...], float] = OrderedDict()
        self._counts: dict[tuple[str, int], _Count] = {}

    def record(self, context: RequestContext, status: int) -> None:
        """Record a request that was answered. If that fails, an error is logged and the response stands.

        Args:
            context: What is known of the request.
            status: HTTP status of the response.
        """
        try:
            lines = [*self._waiting(at_least=_COUNTED_SECONDS), *self._lines(context, status)]
            for line in lines:
                self.file.add(line)
        except (OSError, BapsError) as error:
            logger.error("A line of the audit file %s could not be written (%s).", self.file.file, type(error).__name__)

    def close(self) -> None:
        """Write the numbers that wait for their minute, and flush all lines to the disk."""
        try:
            for line in self._waiting(at_least=0):
                self.file.add(line)
            self.file.sync()
        except (OSError, BapsError) as error:
            logger.error("The audit file %s could not be closed (%s).", self.file.file, type(error).__name__)

    def read(self) -> StreamingResponse:
        """Send the audit file, including earlier files that are full."""
        opened = self.file.opened()
        files, _ = opened.__enter__()

        def content() -> Iterator[bytes]:
            try:
                for file, size in files:
                    yield from _read_blocks(file, size)
            finally:
                opened.__exit__(None, None, None)

        length = str(sum(size for _, size in files))
        return StreamingResponse(content(), media_type="application/jsonl", headers={"Content-Length": length})

    def _lines(self, context: RequestContext, status: int) -> Iterator[dict[str, Any]]:
        action, principal, now = _action_of(context), context.principal, self._clock()
        is_repeated = context.policy is None or context.policy.repeated or status == 403
        if principal is None:
            if self._counts_alone(action, status, now):
                return
        elif is_repeated and self._is_repeat(context, status, now):
            return
        line = {
            "user": principal.name if principal else None,
            "role": principal.role.value if principal else None,
            "by": principal.by if principal else None,
            "what": action,
            "image": self.file.hashed(context.image) if context.image else None,
            "adapter": context.adapter or None,
            "status": status,
        }
        images = [self.file.hashed(image) for image in context.images]
        for start in range(0, max(len(images), 1), _IMAGES_PER_LINE):
            several = {"images": images[start : start + _IMAGES_PER_LINE], "count": len(images)} if images else {}
            yield {**line, **several}
        for also in context.also:
            yield {**line, "what": also}

    def _counts_alone(self, what: str, status: int, now: float) -> bool:
        """Count a request of an unknown user.

        Returns:
            False if it is the first of its kind, which gets a line.
        """
        with self._lock:
            count = self._counts.get((what, status))
            if count is None:
                self._counts[what, status] = _Count(now)
                return False
            count.waiting += 1
            return True

    def _waiting(self, at_least: float) -> Iterator[dict[str, Any]]:
        """Return the lines of counted requests whose last line is at least so many seconds ago."""
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

    def _is_repeat(self, context: RequestContext, status: int, now: float) -> bool:
        """Return whether an equal request got a line in the last ten minutes."""
        key = (context.name, _action_of(context), context.image, status >= 400)
        with self._lock:
            written = self._repeats.get(key)
            if written is not None and now - written < _REPEAT_SECONDS:
                return True
            self._repeats[key] = now
            self._repeats.move_to_end(key)
            while len(self._repeats) > _MAX_REMEMBERED:
                self._repeats.popitem(last=False)
            return False


def _action_of(context: RequestContext) -> str:
    if context.principal is None and (context.policy is None or context.policy.role is not None):
        return "ask without leave"  # Whatever the path: otherwise every path would be counted on its own.
    return context.policy.action if context.policy else "what is not served"


def _read_blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield the first bytes of a file, in blocks."""
    file.seek(0)
    while size and (block := file.read(min(size, _BLOCK))):
        size -= len(block)
        yield block
