from __future__ import annotations

import os
import threading
from functools import partial

from baps.inference.prefetch import _MAX_JOBS, Prefetcher


def test_jobs_are_done_in_order_and_those_of_the_last_call_first() -> None:
    prefetcher, done = Prefetcher(), []
    with prefetcher.paused():
        for call in "ab":
            prefetcher.schedule([partial(done.append, f"{call}{number}") for number in range(3)])
    prefetcher.wait()
    assert done == ["b0", "b1", "b2", "a0", "a1", "a2"]


def test_nothing_is_begun_while_somebody_waits() -> None:
    prefetcher, done = Prefetcher(), threading.Event()
    with prefetcher.paused():
        with prefetcher.paused():
            prefetcher.schedule([done.set])
        assert not done.wait(0.2)
    assert done.wait(10)


def test_an_answer_does_not_wait_for_a_job_that_was_begun() -> None:
    prefetcher, started, finish = Prefetcher(), threading.Event(), threading.Event()

    def job() -> None:
        started.set()
        assert finish.wait(10)

    prefetcher.schedule([job])
    assert started.wait(10)
    with prefetcher.paused():
        pass
    finish.set()
    prefetcher.wait()


def test_what_is_old_is_dropped() -> None:
    prefetcher, done = Prefetcher(), []
    with prefetcher.paused():
        for number in range(2 * _MAX_JOBS):
            prefetcher.schedule([partial(done.append, number)])
    prefetcher.wait()
    assert done == list(reversed(range(_MAX_JOBS, 2 * _MAX_JOBS)))


def test_a_job_that_fails_stops_no_other() -> None:
    prefetcher, done = Prefetcher(), []
    prefetcher.schedule([lambda: 1 / 0, partial(done.append, 1)])
    prefetcher.wait()
    assert done == [1]


def test_the_thread_has_the_lowest_priority_and_others_keep_theirs() -> None:
    prefetcher, results = Prefetcher(), []
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    prefetcher.schedule([lambda: results.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))])
    prefetcher.wait()
    assert results == [19]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_without_jobs_there_is_no_thread() -> None:
    before = set(threading.enumerate())
    Prefetcher().schedule([])
    assert set(threading.enumerate()) <= before
