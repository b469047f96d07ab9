from __future__ import annotations

import os
import threading
from functools import partial

from baps.inference.prefetch import _MOST, Prefetcher


def test_jobs_are_done_in_order_and_those_of_the_last_call_first() -> None:
    ahead, done = Prefetcher(), []
    with ahead.answering():
        for call in "ab":
            ahead.plan([partial(done.append, f"{call}{number}") for number in range(3)])
    ahead.wait()
    assert done == ["b0", "b1", "b2", "a0", "a1", "a2"]


def test_nothing_is_begun_while_somebody_waits() -> None:
    ahead, done = Prefetcher(), threading.Event()
    with ahead.answering():
        with ahead.answering():
            ahead.plan([done.set])
        assert not done.wait(0.2)
    assert done.wait(10)


def test_an_answer_does_not_wait_for_a_job_that_was_begun() -> None:
    ahead, begun, finish = Prefetcher(), threading.Event(), threading.Event()

    def job() -> None:
        begun.set()
        assert finish.wait(10)

    ahead.plan([job])
    assert begun.wait(10)
    with ahead.answering():
        pass
    finish.set()
    ahead.wait()


def test_what_is_old_is_dropped() -> None:
    ahead, done = Prefetcher(), []
    with ahead.answering():
        for number in range(2 * _MOST):
            ahead.plan([partial(done.append, number)])
    ahead.wait()
    assert done == list(reversed(range(_MOST, 2 * _MOST)))


def test_a_job_that_fails_stops_no_other() -> None:
    ahead, done = Prefetcher(), []
    ahead.plan([lambda: 1 / 0, partial(done.append, 1)])
    ahead.wait()
    assert done == [1]


def test_the_thread_has_the_lowest_priority_and_others_keep_theirs() -> None:
    ahead, found = Prefetcher(), []
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    ahead.plan([lambda: found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))])
    ahead.wait()
    assert found == [19]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_without_jobs_there_is_no_thread() -> None:
    before = set(threading.enumerate())
    Prefetcher().plan([])
    assert set(threading.enumerate()) <= before
