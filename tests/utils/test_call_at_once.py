from __future__ import annotations

import threading
from contextvars import ContextVar

import pytest

from baps.utils.call_at_once import call_at_once
from tests.support.crowd import Crowd

_user: ContextVar[str] = ContextVar("user", default="")


def test_calls_run_at_once_and_never_more_than_the_workers() -> None:
    crowd, done = Crowd(3), list[int]()

    def work(item: int) -> None:
        crowd.join()
        done.append(item)

    call_at_once(work, range(9), 3)
    assert sorted(done) == list(range(9))
    assert crowd.most == 3


def test_after_an_error_no_further_call_begins() -> None:
    called: list[int] = []
    first_failed = threading.Event()

    def work(item: int) -> None:
        called.append(item)
        if item == 0:
            first_failed.set()
            raise ZeroDivisionError(item)
        assert first_failed.wait(30)
        threading.Event().wait(0.2)

    with pytest.raises(ZeroDivisionError, match="0"):
        call_at_once(work, range(100), 2)
    assert len(called) < 10


def test_calls_see_the_context_of_the_caller() -> None:
    seen: list[str] = []
    token = _user.set("anna")
    try:
        call_at_once(lambda _: seen.append(_user.get()), range(4), 2)
    finally:
        _user.reset(token)
    assert seen == ["anna"] * 4
