from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baps.utils.cache import Cache


def test_value_is_computed_once() -> None:
    cache = Cache(10, len)
    created: list[int] = []

    def make() -> bytes:
        created.append(1)
        return b"abc"

    assert cache.get_or_compute("a", make) == (b"abc", False)
    assert cache.get_or_compute("a", make) == (b"abc", True)
    assert len(created) == 1
    assert cache.nbytes == 3


def test_least_recently_used_value_is_evicted_first() -> None:
    cache = Cache(3, len)
    for key in "abc":
        cache.get_or_compute(key, lambda: b"x")
    cache.get_or_compute("a", lambda: b"x")
    cache.get_or_compute("d", lambda: b"x")  # b is now the oldest.
    assert cache.get_or_compute("a", lambda: b"y") == (b"x", True)
    assert cache.get_or_compute("c", lambda: b"y") == (b"x", True)
    assert cache.get_or_compute("d", lambda: b"y") == (b"x", True)
    assert cache.get_or_compute("b", lambda: b"y") == (b"y", False)


def test_large_value_evicts_as_many_as_needed() -> None:
    cache = Cache(4, len)
    for key in "abcd":
        cache.get_or_compute(key, lambda: b"x")
    cache.get_or_compute("large", lambda: b"xxx")
    assert cache.nbytes == 4
    assert cache.get_or_compute("d", lambda: b"y") == (b"x", True)


def test_value_larger_than_the_limit_is_not_cached() -> None:
    cache = Cache(3, len)
    cache.get_or_compute("small", lambda: b"x")
    assert cache.get_or_compute("large", lambda: b"xxxx") == (b"xxxx", False)
    assert cache.get_or_compute("large", lambda: b"xxxx") == (b"xxxx", False)
    assert cache.nbytes == 1
    assert cache.get_or_compute("small", lambda: b"y") == (b"x", True)


def test_error_is_not_cached() -> None:
    cache = Cache(3, len)

    def fail() -> bytes:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cache.get_or_compute("a", fail)
    assert cache.nbytes == 0
    assert cache.get_or_compute("a", lambda: b"x") == (b"x", False)


@given(
    bound=st.integers(0, 20),
    requests=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 12)), max_size=60),
)
def test_limit_is_never_exceeded(bound: int, requests: list[tuple[int, int]]) -> None:
    cache = Cache(bound, len)
    cached: dict[int, bytes] = {}
    for key, size in requests:
        value, was_there = cache.get_or_compute(key, lambda size=size: b"x" * size)  # type: ignore[misc]
        if was_there:
            assert value == cached[key]
        else:
            assert value == b"x" * size
            cached[key] = value
        assert 0 <= cache.nbytes <= bound


def test_threads_get_correct_values_within_the_limit() -> None:
    cache = Cache(50, lambda value: value[1])
    over = threading.Event()

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(400):
            key = int(random.integers(30))
            value, _ = cache.get_or_compute(key, lambda key=key: (key, key % 7 + 1))  # type: ignore[misc]
            assert value == (key, key % 7 + 1)
            if cache.nbytes > 50 + 7:  # Read without the lock, so there may be one value more.
                over.set()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert not over.is_set()
    assert 0 < cache.nbytes <= 50
    uncached_sum = sum(
        key % 7 + 1 for key in range(30) if cache.get_or_compute(key, lambda: (-1, 99))[1]
    )  # 99 is never cached.
    assert uncached_sum == cache.nbytes


def test_second_caller_waits_for_the_computed_value() -> None:
    cache = Cache(10, len)
    started, release = threading.Event(), threading.Event()
    created: list[int] = []

    def slow() -> bytes:
        created.append(1)
        started.set()
        assert release.wait(60)
        return b"xxx"

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get_or_compute, "a", slow)
        assert started.wait(60)
        second = pool.submit(cache.get_or_compute, "a", slow)
        release.set()
        assert first.result(60) == (b"xxx", False)
        assert second.result(60) == (b"xxx", True)
    assert len(created) == 1
    assert cache.nbytes == 3


def test_waiting_caller_gets_the_error() -> None:
    cache = Cache(10, len)
    started, release = threading.Event(), threading.Event()

    def fail() -> bytes:
        started.set()
        assert release.wait(60)
        raise RuntimeError("no")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get_or_compute, "a", fail)
        assert started.wait(60)
        second = pool.submit(cache.get_or_compute, "a", lambda: b"later")
        release.set()
        with pytest.raises(RuntimeError):
            first.result(60)
        try:
            assert second.result(60) == (b"later", False)  # This caller came too late to share the error.
        except RuntimeError as error:
            assert str(error) == "no"
    assert cache.nbytes in (0, 5)


def test_one_slow_value_does_not_block_another() -> None:
    cache = Cache(10, len)
    started, release = threading.Event(), threading.Event()

    def slow() -> bytes:
        started.set()
        assert release.wait(60)
        return b"slow"

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(cache.get_or_compute, "slow", slow)
        assert started.wait(60)
        assert cache.get_or_compute("quick", lambda: b"quick") == (b"quick", False)
        release.set()
        assert waiting.result(60) == (b"slow", False)
