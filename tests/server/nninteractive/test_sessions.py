"""Leases: who may use a session, when it ends, and how much memory there is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from fastapi import HTTPException

from baps.server.nninteractive.sessions import Limits, Sessions

LIMITS = Limits(sessions=3, sessions_per_user=2, max_bytes=1000, idle_seconds=600, liveness_seconds=60)


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(clock: Clock) -> Sessions:
    return Sessions(LIMITS, clock)


def status(call: Callable[[], object]) -> int:
    with pytest.raises(HTTPException) as error:
        call()
    assert str(error.value.detail).endswith(".")
    return error.value.status_code


def use(sessions: Sessions, token: str, owner: str = "anna", label: str = "", active: bool = True) -> None:
    with sessions.using(token, owner, label, active):
        pass


def test_a_lease_serves_its_owner_at_its_address_only(sessions: Sessions) -> None:
    token = sessions.claim("anna", "spleen")
    use(sessions, token, label="spleen")
    for other in ((token, "otto", "spleen"), (token, "anna", ""), ("", "anna", "spleen"), ("x", "anna", "spleen")):
        assert status(lambda other=other: use(sessions, *other)) == 410  # type: ignore[misc]
    sessions.release(token, "otto", "spleen")
    use(sessions, token, label="spleen")
    sessions.release(token, "anna", "spleen")
    sessions.release(token, "anna", "spleen")
    assert status(lambda: use(sessions, token, label="spleen")) == 410


def test_leases_are_long_and_differ(sessions: Sessions) -> None:
    tokens = {sessions.claim(owner, "") for owner in ("anna", "otto", "anna")}
    assert len(tokens) == 3
    assert min(map(len, tokens)) >= 40


def test_the_number_of_sessions_is_bounded_in_total_and_for_one_user(sessions: Sessions) -> None:
    first = sessions.claim("anna", "")
    sessions.claim("anna", "")
    assert status(lambda: sessions.claim("anna", "")) == 503
    sessions.claim("otto", "")
    assert status(lambda: sessions.claim("eva", "")) == 503
    with pytest.raises(HTTPException) as error:
        sessions.claim("eva", "")
    assert error.value.headers == {"Retry-After": "30"}
    sessions.release(first, "anna", "")
    sessions.claim("eva", "")


def test_a_client_that_disappeared_is_gone_after_its_timeout(sessions: Sessions, clock: Clock) -> None:
    token = sessions.claim("anna", "")
    clock.now = 59
    use(sessions, token, active=False)
    clock.now = 59 + 59
    use(sessions, token, active=False)
    clock.now = 59 + 59 + 61
    assert status(lambda: use(sessions, token)) == 410
    assert len(sessions) == 0


def test_heartbeats_do_not_postpone_the_idle_timeout(sessions: Sessions, clock: Clock) -> None:
    token = sessions.claim("anna", "")
    for clock.now in range(50, 600, 50):
        with sessions.using(token, "anna", "", active=False) as session:
            assert sessions.remaining_seconds(session) == 600 - clock.now
    clock.now = 601
    assert status(lambda: use(sessions, token, active=False)) == 410


def test_what_a_person_does_postpones_it(sessions: Sessions, clock: Clock) -> None:
    token = sessions.claim("anna", "")
    for clock.now in range(50, 1500, 50):
        use(sessions, token)
    with sessions.using(token, "anna", "", active=False) as session:
        assert sessions.remaining_seconds(session) == 600


def test_a_session_in_which_a_request_runs_does_not_end(sessions: Sessions, clock: Clock) -> None:
    token = sessions.claim("anna", "")
    with sessions.using(token, "anna", ""):
        clock.now = 10_000
        sessions.sweep()
        assert len(sessions) == 1
    use(sessions, token)


def test_memory_is_bounded_for_all_sessions_together(sessions: Sessions) -> None:
    tokens = [sessions.claim(owner, "") for owner in ("anna", "otto")]
    with sessions.using(tokens[0], "anna", "") as first, sessions.using(tokens[1], "otto", "") as second:
        assert status(lambda: sessions.reserve(first, 1001)) == 413
        sessions.reserve(first, 700)
        assert status(lambda: sessions.reserve(second, 400)) == 503
        sessions.reserve(first, 600)  # In place of what it had.
        sessions.reserve(second, 400)
        assert sessions.nbytes == 1000
    sessions.release(tokens[0], "anna", "")
    assert sessions.nbytes == 400


def test_a_session_that_has_ended_gets_no_memory(sessions: Sessions) -> None:
    token = sessions.claim("anna", "")
    with sessions.using(token, "anna", "") as session:
        sessions.release(token, "anna", "")
        assert status(lambda: sessions.reserve(session, 10)) == 410
    assert sessions.nbytes == 0


def test_an_abandoned_session_is_removed_without_another_request() -> None:
    sessions = Sessions(replace(LIMITS, liveness_seconds=0.2))
    for _ in range(2):  # The thread that sweeps ends with the last session, and starts again.
        token = sessions.claim("anna", "")
        with sessions.using(token, "anna", "") as session:
            sessions.reserve(session, 500)
        deadline = time.monotonic() + 20
        while sessions.nbytes and time.monotonic() < deadline:
            time.sleep(0.05)
        assert sessions.nbytes == 0
        assert len(sessions) == 0


def test_what_is_left_to_do_for_a_session_is_done_once_it_has_ended(clock: Clock) -> None:
    ended: list[str] = []
    sessions = Sessions(LIMITS, clock, lambda session: ended.append(session.label))
    released, stopped = sessions.claim("anna", "released"), sessions.claim("anna", "stopped")
    sessions.release(released, "otto", "released")
    assert ended == []
    sessions.release(released, "anna", "released")
    assert ended == ["released"]
    sessions.close(1)
    assert ended == ["released", "stopped"]
    assert status(lambda: use(sessions, stopped, label="stopped")) == 410


def test_it_is_not_done_while_a_request_runs_and_the_memory_counts_until_then(clock: Clock) -> None:
    ended: list[int] = []
    sessions = Sessions(LIMITS, clock, lambda session: ended.append(sessions.nbytes))
    token = sessions.claim("anna", "")
    with sessions.using(token, "anna", "") as session:
        sessions.reserve(session, 700)
        sessions.release(token, "anna", "")
        assert (ended, sessions.nbytes) == ([], 700)
    sessions.close(1)
    assert (ended, sessions.nbytes) == ([700], 0)


def test_it_is_not_done_in_the_request_of_another_client(clock: Clock) -> None:
    threads: list[str] = []
    sessions = Sessions(
        replace(LIMITS, liveness_seconds=60), clock, lambda _: threads.append(threading.current_thread().name)
    )
    sessions.claim("anna", "")
    clock.now = 61
    other = sessions.claim("otto", "")
    use(sessions, other, owner="otto")
    deadline = time.monotonic() + 20
    while not threads and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threads == ["nninteractive"]
    assert len(sessions) == 1
