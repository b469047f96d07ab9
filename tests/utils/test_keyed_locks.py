from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from baps.utils.keyed_locks import KeyedLocks


def test_key_is_held_by_one_thread_and_other_keys_are_free() -> None:
    locks, entered = KeyedLocks(), threading.Event()

    def hold() -> None:
        with locks.holding("a"):
            entered.set()

    with ThreadPoolExecutor(1) as pool:
        with locks.holding("a"):
            waiting = pool.submit(hold)
            with locks.holding("b"):
                pass
            assert not entered.wait(0.2)
        waiting.result(10)
    assert entered.is_set()
    assert not locks._locks


def test_key_protects_a_counter() -> None:
    locks, counts = KeyedLocks(), {"a": 0, "b": 0}

    def count(key: str) -> None:
        for _ in range(500):
            with locks.holding(key):
                before = counts[key]
                counts[key] = before + 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, "abababab"))
    assert counts == {"a": 2000, "b": 2000}
    assert not locks._locks
