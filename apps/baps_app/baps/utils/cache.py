"""A cache that never grows beyond its bound, shared by all users and volumes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, TypeVar

Value = TypeVar("Value")


class Cache:
    """Least recently used goes first.

    Thread-safe. What is made for a key is made outside the lock, by the first who asks; others wait for it.

    Args:
        most_bytes: bound on the sum of the sizes.
        size: of a value, bytes.
    """

    def __init__(self, most_bytes: int, size: Callable[[Any], int]) -> None:
        self._most, self._size = most_bytes, size
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()
        self._making: dict[Hashable, Future[Any]] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """What is held now."""
        return self._bytes

    def get(self, key: Hashable, make: Callable[[], Value]) -> tuple[Value, bool]:
        """The value of a key, made if it is not there, and whether it was there or somebody else made it.

        A value larger than the bound is returned and not kept.
        """
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key], True
            others = self._making.get(key)
            if others is None:
                mine = self._making[key] = Future()
        if others is not None:
            return others.result(), True
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._making[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._making[key]
            size = self._size(value)
            if size <= self._most:
                self._entries[key] = value
                self._bytes += size
                while self._bytes > self._most:
                    _, gone = self._entries.popitem(last=False)
                    self._bytes -= self._size(gone)
        mine.set_result(value)
        return value, False
