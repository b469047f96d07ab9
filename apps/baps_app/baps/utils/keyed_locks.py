"""Locks by name: who works on one image does not wait for who works on another."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager


class KeyedLocks:
    """A lock for each key that is in use; nothing is kept of the others. Thread-safe."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, tuple[threading.Lock, int]] = {}
        self._changing = threading.Lock()

    @contextmanager
    def holding(self, key: Hashable) -> Iterator[None]:
        """Hold the lock of a key as long as the context lasts; a thread may take it once."""
        with self._changing:
            lock, users = self._locks.get(key, (threading.Lock(), 0))
            self._locks[key] = lock, users + 1
        try:
            with lock:
                yield
        finally:
            with self._changing:
                _, users = self._locks.pop(key)
                if users > 1:
                    self._locks[key] = lock, users - 1
