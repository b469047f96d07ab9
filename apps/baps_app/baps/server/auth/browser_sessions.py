"""Sessions of browsers that have signed in. The cookie holds a random value; the server keeps whose it is."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from baps.server.request_context import Principal

_MAX_IDLE_SECONDS = 2 * 3600.0
_MAX_AGE_SECONDS = 12 * 3600.0
_MAX_SESSIONS = 4096
_MAX_SESSIONS_PER_USER = 16
"""More browsers than a person uses in a day."""

_ID_LENGTH = 32


@dataclass(frozen=True)
class SessionInfo:
    """What a session is known by, without its cookie.

    Attributes:
        id: Name of the session: the beginning of the hash of its cookie.
        principal: User of the session.
        token_sha256: Hash of the token that the user signed in with, or "".
        started: When it began.
        last_used: When the user last used it.
    """

    id: str
    principal: Principal
    token_sha256: str
    started: datetime
    last_used: datetime


@dataclass
class _Session:
    """A session of a browser.

    Attributes:
        principal: User of the session.
        token_sha256: Hash of the token that the user signed in with, or "".
        started: Time at which it began, in seconds.
        last_used: Time of its last request, in seconds.
    """

    principal: Principal
    token_sha256: str
    started: float
    last_used: float

    @property
    def user(self) -> tuple[str, str]:
        return self.principal.by, self.principal.name


class BrowserSessions:
    """Sessions by the hash of their cookie. A session ends after two idle hours, and after twelve hours in any case.

    If one user has too many sessions, the one that was idle for longest ends. If all users together have too many, the
    user with the most sessions loses one.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._by_user: Counter[tuple[str, str]] = Counter()

    def begin(self, principal: Principal, token_sha256: str = "") -> str:
        """Begin a session.

        Args:
            principal: User of the session.
            token_sha256: Hash of the token that the user signed in with. ``find`` returns it, so that the caller can
                end the session when the token is revoked.

        Returns:
            The value of its cookie.
        """
        value, now = secrets.token_urlsafe(32), self._clock()
        session = _Session(principal, token_sha256, now, now)
        with self._lock:
            self._sessions[_hash(value)] = session
            self._by_user[session.user] += 1
            if self._by_user[session.user] > _MAX_SESSIONS_PER_USER:
                self._end_oldest(session.user)
            elif len(self._sessions) > _MAX_SESSIONS:
                self._end_oldest(self._by_user.most_common(1)[0][0])
        return value

    def find(self, value: str, is_use: bool = True) -> tuple[Principal, str] | None:
        """Find the session of a cookie.

        Args:
            value: Value of the cookie.
            is_use: Whether a person uses the session, so that it is not idle. Pages send some requests on their own.

        Returns:
            The user and the hash of the token, or None if there is no such session or it has ended.
        """
        now = self._clock()
        with self._lock:
            session = self._sessions.get(_hash(value))
            if session is None:
                return None
            if self._has_ended(session, now):
                self._remove(_hash(value))
                return None
            if is_use:
                session.last_used = now
                self._sessions.move_to_end(_hash(value))
            return session.principal, session.token_sha256

    def end(self, value: str) -> None:
        """End the session of a cookie, if there is one.

        Args:
            value: Value of the cookie.
        """
        with self._lock:
            self._remove(_hash(value))

    def all(self) -> list[SessionInfo]:
        """List the sessions that have not ended, the last used first."""
        now, time_now = self._clock(), datetime.now(timezone.utc)

        def when(seconds: float) -> datetime:
            return time_now - timedelta(seconds=now - seconds)

        with self._lock:
            return [
                SessionInfo(key[:_ID_LENGTH], one.principal, one.token_sha256, when(one.started), when(one.last_used))
                for key, one in reversed(self._sessions.items())
                if not self._has_ended(one, now)
            ]

    def end_by_id(self, session_id: str) -> Principal | None:
        """End a session.

        Args:
            session_id: ``SessionInfo.id``.

        Returns:
            Its user, or None if there is no such session.
        """
        with self._lock:
            key = next((key for key in self._sessions if key[:_ID_LENGTH] == session_id), None)
            if key is None:
                return None
            principal = self._sessions[key].principal
            self._remove(key)
            return principal

    @staticmethod
    def id_of(value: str) -> str:
        """Return the name of the session of a cookie.

        Args:
            value: Value of the cookie.
        """
        return _hash(value)[:_ID_LENGTH]

    @staticmethod
    def _has_ended(session: _Session, now: float) -> bool:
        return now - session.last_used > _MAX_IDLE_SECONDS or now - session.started > _MAX_AGE_SECONDS

    def _end_oldest(self, user: tuple[str, str]) -> None:
        """End the session of a user that was idle for longest."""
        self._remove(next(key for key, session in self._sessions.items() if session.user == user))

    def _remove(self, key: str) -> None:
        session = self._sessions.pop(key, None)
        if session:
            self._by_user[session.user] -= 1
            if not self._by_user[session.user]:
                del self._by_user[session.user]


def _hash(value: str) -> str:
    return hashlib.sha256(value.encode("utf-8", "surrogateescape")).hexdigest()
