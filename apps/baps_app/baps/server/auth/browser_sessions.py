"""Browsers that have signed in. The cookie holds a random name; what it stands for stays here."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from baps.server.request_context import Principal

_IDLE = 2 * 3600.0
_LONGEST = 12 * 3600.0
_MOST = 4096
_MOST_OF_ONE = 16
"""Sessions of one user: more browsers than a person uses in a day."""


@dataclass
class _Session:
    principal: Principal
    token: str
    begun: float
    seen: float

    @property
    def user(self) -> tuple[str, str]:
        return self.principal.by, self.principal.name


class Sessions:
    """Sessions by the hash of their cookie; they end when nobody used them for long, and after a day's work.

    A user who begins too many loses the one that was not used for longest. Where all users together have too many, it
    is one of whoever has most.

    Args:
        clock: of seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._by_user: Counter[tuple[str, str]] = Counter()

    def begin(self, principal: Principal, token: str = "") -> str:
        """A new session; the value of its cookie.

        Args:
            principal: whose it is.
            token: the hash of the token that it was begun with, without which it does not go on.
        """
        value, now = secrets.token_urlsafe(32), self._clock()
        session = _Session(principal, token, now, now)
        with self._lock:
            self._sessions[_hash(value)] = session
            self._by_user[session.user] += 1
            if self._by_user[session.user] > _MOST_OF_ONE:
                self._end_oldest(session.user)
            elif len(self._sessions) > _MOST:
                self._end_oldest(self._by_user.most_common(1)[0][0])
        return value

    def find(self, value: str) -> tuple[Principal, str] | None:
        """Whose session it is and the hash of their token, or None if there is none or it has ended."""
        now = self._clock()
        with self._lock:
            session = self._sessions.get(_hash(value))
            if session is None:
                return None
            if now - session.seen > _IDLE or now - session.begun > _LONGEST:
                self._remove(_hash(value))
                return None
            session.seen = now
            self._sessions.move_to_end(_hash(value))
            return session.principal, session.token

    def end(self, value: str) -> None:
        """End a session, if there is one."""
        with self._lock:
            self._remove(_hash(value))

    def _end_oldest(self, user: tuple[str, str]) -> None:
        """End the session of a user that was not used for longest."""
        self._remove(next(key for key, session in self._sessions.items() if session.user == user))

    def _remove(self, key: str) -> None:
        session = self._sessions.pop(key, None)
        if session:
            self._by_user[session.user] -= 1
            if not self._by_user[session.user]:
                del self._by_user[session.user]


def _hash(value: str) -> str:
    return hashlib.sha256(value.encode("utf-8", "surrogateescape")).hexdigest()
