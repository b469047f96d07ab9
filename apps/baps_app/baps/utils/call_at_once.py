"""Call a function on several items at once, in threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextvars import copy_context
from typing import TypeVar

Item = TypeVar("Item")


def call_at_once(function: Callable[[Item], None], items: Sequence[Item], workers: int) -> None:
    """Call a function on each item, in the context of the caller, and wait until all calls have ended.

    After an error no further call begins.

    Args:
        function: the function. It must be thread-safe.
        items: its arguments.
        workers: maximum number of calls at once.

    Raises:
        Exception: the first error of a call.
    """
    if len(items) < 2:
        for item in items:
            function(item)
        return
    with ThreadPoolExecutor(min(workers, len(items))) as pool:
        calls = [pool.submit(copy_context().run, function, item) for item in items]
        try:
            for call in as_completed(calls):
                call.result()
        finally:
            for call in calls:
                call.cancel()
