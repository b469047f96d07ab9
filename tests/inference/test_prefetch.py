from __future__ import annotations

import os
import threading
from functools import partial

from baps.inference.prefetch import _MAX_JOBS, Prefetcher


def test_jobs_of_the_last_call_run_first_in_order() -> None:
    prefetcher, results = Prefetcher(), []
    with prefetcher.paused():
        for call in "ab":
            prefetcher.schedule([partial(results.append, f"{call}{number}") for number in range(3)])
    prefetcher.wait()
    assert results == ["b0", "b1", "b2", "a0", "a1", "a2"]


def test_no_job_starts_while_prefetching_is_paused() -> None:
    prefetcher, results = Prefetcher(), threading.Event()
    with prefetcher.paused():
        with prefetcher.paused():
            prefetcher.schedule([results.set])
        assert not results.wait(0.2)
    assert results.wait(10)


def test_pause_does_not_wait_for_a_running_job() -> None:
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


def test_old_jobs_are_dropped() -> None:
    prefetcher, results = Prefetcher(), []
    with prefetcher.paused():
        for number in range(2 * _MAX_JOBS):
            prefetcher.schedule([partial(results.append, number)])
    prefetcher.wait()
    assert results == list(reversed(range(_MAX_JOBS, 2 * _MAX_JOBS)))


def test_failed_job_does_not_stop_others() -> None:
    prefetcher, results = Prefetcher(), []
    prefetcher.schedule([lambda: 1 / 0, partial(results.append, 1)])
    prefetcher.wait()
    assert results == [1]


def test_thread_has_the_lowest_priority() -> None:
    prefetcher, results = Prefetcher(), []
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    prefetcher.schedule([lambda: results.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))])
    prefetcher.wait()
    assert results == [19]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_no_thread_without_jobs() -> None:
    before = set(threading.enumerate())
    Prefetcher().schedule([])
    assert set(threading.enumerate()) <= before
