"""A cache that never grows beyond its bound, shared by all users and volumes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Cache(Generic[Value]):
    """Least recently used goes first. Thread-safe; what is made for a key is made outside the lock.

    Args:
        most_bytes: bound on the sum of the sizes.
        size: of a value, bytes.
    """

    def __init__(self, most_bytes: int, size: Callable[[Value], int]) -> None:
        self._most, self._size = most_bytes, size
        self._entries: OrderedDict[Hashable, Value] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """What is held now."""
        return self._bytes

    def get(self, key: Hashable, make: Callable[[], Value]) -> tuple[Value, bool]:
        """The value of a key, made if it is not there, and whether it was there.

        A value larger than the bound is returned and not kept.
        """
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key], True
        value = make()
        with self._lock:
            if key not in self._entries and self._size(value) <= self._most:
                self._entries[key] = value
                self._bytes += self._size(value)
                while self._bytes > self._most:
                    _, gone = self._entries.popitem(last=False)
                    self._bytes -= self._size(gone)
        return value, False
