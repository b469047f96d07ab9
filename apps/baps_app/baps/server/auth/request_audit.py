"""Record requests in the audit file.

Each request of a user that reads or changes patient data gets a line. Viewers send hundreds of requests to fetch a
series from a PACS: among equal requests, and among refused ones, one in ten minutes gets a line. Requests of unknown
users are counted, so that they cannot fill the disk: the first of each kind gets a line, and then one line per minute
holds their number.
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
_COUNT_SECONDS = 60.0
_MAX_REMEMBERED = 4096
_IMAGES_PER_LINE = 500
_BLOCK = 1 << 16


@dataclass
class _Count:
    """The number of requests of one kind from unknown users.

    Attributes:
        last_line: Time of the last line, in seconds.
        requests: Number of requests since then.
    """

    last_line: float
    requests: int = 0


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
            lines = [*self._count_lines(min_age=_COUNT_SECONDS), *self._lines(context, status)]
            for line in lines:
                self.file.add(line)
        except (OSError, BapsError) as error:
            logger.error("A line of the audit file %s could not be written (%s).", self.file.file, type(error).__name__)

    def close(self) -> None:
        """Write the numbers of requests that have no line yet, and flush all lines to the disk."""
        try:
            for line in self._count_lines(min_age=0):
                self.file.add(line)
            self.file.sync()
        except (OSError, BapsError) as error:
            logger.error("The audit file %s could not be closed (%s).", self.file.file, type(error).__name__)

    def read(self) -> StreamingResponse:
        """Return a response with the content of the audit file and of the earlier files that are full."""
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
            if self._count(action, status, now):
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
            **context.details,
        }
        images = [self.file.hashed(image) for image in context.images]
        for start in range(0, max(len(images), 1), _IMAGES_PER_LINE):
            several = {"images": images[start : start + _IMAGES_PER_LINE], "count": len(images)} if images else {}
            yield {**line, **several}
        for further_action in context.further_actions:
            yield {**line, "what": further_action}

    def _count(self, action: str, status: int, now: float) -> bool:
        """Count a request of an unknown user.

        Returns:
            False if it is the first of its kind, which gets a line.
        """
        with self._lock:
            count = self._counts.get((action, status))
            if count is None:
                self._counts[action, status] = _Count(now)
                return False
            count.requests += 1
            return True

    def _count_lines(self, min_age: float) -> Iterator[dict[str, Any]]:
        """Yield the lines of counted requests whose last line is at least so many seconds old."""
        now, due = self._clock(), []
        with self._lock:
            for kind, count in list(self._counts.items()):
                if now - count.last_line < min_age:
                    continue
                if count.requests:
                    due.append((kind, count.requests))
                    self._counts[kind] = _Count(now)
                else:
                    del self._counts[kind]
        unknown_user = {"user": None, "role": None, "by": None}
        for (action, status), number in due:
            yield {**unknown_user, "what": action, "image": None, "adapter": None, "status": status, "count": number}

    def _is_repeat(self, context: RequestContext, status: int, now: float) -> bool:
        """Return whether an equal request got a line in the last ten minutes."""
        key = (context.name, _action_of(context), context.image, status >= 400)
        with self._lock:
            last_line = self._repeats.get(key)
            if last_line is not None and now - last_line < _REPEAT_SECONDS:
                return True
            self._repeats[key] = now
            self._repeats.move_to_end(key)
            while len(self._repeats) > _MAX_REMEMBERED:
                self._repeats.popitem(last=False)
            return False


def _action_of(context: RequestContext) -> str:
    if context.principal is None and (context.policy is None or context.policy.role is not None):
        return "ask without leave"  # For all paths: otherwise each path would be counted on its own.
    return context.policy.action if context.policy else "what is not served"


def _read_blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield the first bytes of a file, in blocks."""
    file.seek(0)
    while size and (block := file.read(min(size, _BLOCK))):
        size -= len(block)
        yield block
