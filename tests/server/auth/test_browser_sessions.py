from __future__ import annotations

from baps.server.auth.browser_sessions import BrowserSessions
from baps.server.request_context import Principal
from baps.site.roles import Role

ANNA = Principal("anna", Role.ANNOTATOR, "token")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_session_is_found_by_its_cookie_until_it_is_ended() -> None:
    sessions = BrowserSessions()
    first, second = sessions.begin(ANNA, "hash"), sessions.begin(ANNA)
    assert first != second
    assert len(first) >= 43
    assert first not in repr(sessions.__dict__)  # The stored hash cannot be used as a cookie.
    assert sessions.find(first) == (ANNA, "hash")
    for guess in ("", first[:-1], "\udc80"):
        assert sessions.find(guess) is None
    sessions.end(first)
    assert sessions.find(first) is None
    assert sessions.find(second) is not None


def test_an_idle_session_ends() -> None:
    clock = Clock()
    sessions = BrowserSessions(clock)
    value = sessions.begin(ANNA)
    for _ in range(3):
        clock.now += 2 * 3600
        assert sessions.find(value) is not None
    clock.now += 2 * 3600 + 1
    assert sessions.find(value) is None
    clock.now -= 3600
    assert sessions.find(value) is None


def test_a_session_ends_after_twelve_hours_even_if_it_is_used() -> None:
    clock = Clock()
    sessions = BrowserSessions(clock)
    value = sessions.begin(ANNA)
    for _ in range(12):
        clock.now += 3600
        assert sessions.find(value) is not None
    clock.now += 1
    assert sessions.find(value) is None


def _principal(name: str) -> Principal:
    return Principal(name, Role.ANNOTATOR, "token")


def test_too_many_sessions_of_a_user_end_only_their_own() -> None:
    sessions = BrowserSessions()
    others = [sessions.begin(_principal(f"user {number}")) for number in range(20)]
    at_the_provider = sessions.begin(Principal("anna", Role.ANNOTATOR, "openid"))
    used, unused = sessions.begin(ANNA), sessions.begin(ANNA)
    for _ in range(4097):
        last = sessions.begin(ANNA)
        assert sessions.find(used) is not None
    assert sessions.find(unused) is None
    assert sessions.find(last) is not None
    assert all(sessions.find(value) for value in (*others, at_the_provider))
    assert len(sessions._sessions) == 16 + 21


def test_the_number_of_sessions_is_limited() -> None:
    sessions = BrowserSessions()
    many = [sessions.begin(ANNA) for _ in range(16)]
    alone = [sessions.begin(_principal(str(number))) for number in range(4096)]
    assert len(sessions._sessions) == 4096
    assert not any(map(sessions.find, many))  # The user with the most sessions loses one first.
    assert all(map(sessions.find, alone))
    for value in alone:
        sessions.end(value)
    assert not sessions._sessions
    assert not sessions._by_user


def test_sessions_are_listed_without_their_cookies_and_ended_by_their_ids() -> None:
    clock = Clock()
    sessions = BrowserSessions(clock)
    bert = Principal("bert", Role.ADMIN, "openid")
    first = sessions.begin(ANNA, "hash")
    clock.now += 600
    second = sessions.begin(bert)
    clock.now += 60
    sessions.find(first)
    listed = sessions.all()
    assert [(one.principal, one.token_sha256) for one in listed] == [(ANNA, "hash"), (bert, "")]
    assert [one.id for one in listed] == [BrowserSessions.id_of(first), BrowserSessions.id_of(second)]
    assert (listed[0].last_used - listed[0].started).total_seconds() == 660
    assert not any(value in repr(listed) for value in (first, second))
    assert sessions.end_by_id(listed[0].id) == ANNA
    assert sessions.find(first) is None
    for unknown in (listed[0].id, "", first):
        assert sessions.end_by_id(unknown) is None
    assert [one.principal for one in sessions.all()] == [bert]
    clock.now += 2 * 3600 + 1
    assert sessions.all() == []
