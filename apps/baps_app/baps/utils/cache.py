"""Cache computed values up to a bound in bytes, shared by all users and volumes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from cachetools import LRUCache

Value = TypeVar("Value")


class Cache:
    """Thread-safe cache that drops the least recently used values first.

    A value is computed outside the lock, by the first thread that wants it; other threads wait for that result.

    Args:
        max_bytes: bound on the sum of the sizes.
        sizeof: function that returns the size of a value in bytes.
    """

    def __init__(self, max_bytes: int, sizeof: Callable[[Any], int]) -> None:
        self._values: LRUCache[Hashable, Any] = LRUCache(max_bytes, getsizeof=sizeof)
        self._pending: dict[Hashable, Future[Any]] = {}
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Sum of the sizes of the cached values, in bytes."""
        return int(self._values.currsize)

    def get_or_compute(self, key: Hashable, compute: Callable[[], Value]) -> tuple[Value, bool]:
        """Return the value of a key, and compute it first if it is not cached.

        Args:
            key: key of the value.
            compute: function that returns the value. A value that is larger than the bound is not kept.

        Returns:
            The value, and whether this call was spared from computing it.

        Raises:
            BaseException: what ``compute`` raised, here or in the thread that this call waited for.
        """
        with self._lock:
            if key in self._values:
                return self._values[key], True
            pending = self._pending.get(key)
            if pending is None:
                future = self._pending[key] = Future()
        if pending is not None:
            return pending.result(), True
        try:
            value = compute()
        except BaseException as error:
            with self._lock:
                del self._pending[key]
            future.set_exception(error)
            raise
        with self._lock:
            del self._pending[key]
            with suppress(ValueError):  # It is larger than the bound.
                self._values[key] = value
        future.set_result(value)
        return value, False
