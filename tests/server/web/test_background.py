from __future__ import annotations

import threading

from baps.errors import BapsError
from baps.server.web.background import BackgroundValue, Computed


def _wait_until_idle(value: BackgroundValue[int]) -> None:
    thread = value._thread
    if thread:
        thread.join(10)


def test_a_page_does_not_wait_for_a_slow_value() -> None:
    may_end = threading.Event()

    def compute() -> int:
        may_end.wait(10)
        return 3

    value = BackgroundValue(compute, 60)
    assert value.get(wait=0.01) == Computed(None)
    may_end.set()
    assert value.get(wait=10) == Computed(3)


def test_a_value_is_computed_again_when_it_is_old() -> None:
    now, calls = [0.0], []

    def compute() -> int:
        calls.append(now[0])
        return len(calls)

    value = BackgroundValue(compute, 10, lambda: now[0])
    assert value.get(10).value == 1
    now[0] = 9.0
    assert value.get(10).value == 1
    now[0] = 11.0
    assert value.get(10).value == 1  # The page shows the old one, and does not wait.
    _wait_until_idle(value)
    assert value.get(10).value == 2
    assert calls == [0.0, 11.0]


def test_an_error_is_a_sentence_and_keeps_the_last_value() -> None:
    now, results = [0.0], iter([1, BapsError("The PACS does not respond."), ZeroDivisionError("secret"), 4])

    def compute() -> int:
        result = next(results)
        if isinstance(result, Exception):
            raise result
        return int(result)

    value = BackgroundValue(compute, 10, lambda: now[0])
    seen = [value.get(10)]
    for _ in range(3):
        now[0] += 11
        value.get(10)
        _wait_until_idle(value)
        seen.append(value.get(10))
    assert seen[:2] == [Computed(1), Computed(1, "The PACS does not respond.")]
    assert seen[2].value == 1
    assert "ZeroDivisionError" in seen[2].error
    assert "secret" not in seen[2].error
    assert seen[3] == Computed(4)


def test_concurrent_pages_compute_once() -> None:
    calls = []
    may_end = threading.Event()

    def compute() -> int:
        calls.append(1)
        may_end.wait(10)
        return 1

    value = BackgroundValue(compute, 60)
    threads = [threading.Thread(target=value.get, args=(10,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    may_end.set()
    for thread in threads:
        thread.join(10)
    assert len(calls) == 1


def test_a_value_that_expires_while_it_is_computed_is_computed_again() -> None:
    started, may_end, calls = threading.Event(), threading.Event(), []

    def compute() -> int:
        calls.append(1)
        started.set()
        may_end.wait(10)
        return len(calls)

    value = BackgroundValue(compute, 60)
    value.get(wait=0)
    assert started.wait(10)
    value.expire()
    may_end.set()
    _wait_until_idle(value)
    assert value.get(wait=10) == Computed(2)  # The page waits for it, as for a first result.
    assert value.get(wait=10) == Computed(2)
