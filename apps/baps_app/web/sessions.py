"""Browsers that have signed in. The cookie holds a random name; what it stands for stays here."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from web.asking import Asker

_IDLE = 2 * 3600.0
_LONGEST = 12 * 3600.0
_MOST = 4096


@dataclass
class _Session:
    asker: Asker
    token: str
    begun: float
    seen: float


class Sessions:
    """Sessions by the hash of their cookie; they end when nobody used them for long, and after a day's work.

    Args:
        clock: of seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._sessions: OrderedDict[str, _Session] = OrderedDict()

    def begin(self, asker: Asker, token: str = "") -> str:
        """A new session; the value of its cookie.

        Args:
            asker: whose it is.
            token: the hash of the token that it was begun with, without which it does not go on.
        """
        value, now = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            self._sessions[_hash(value)] = _Session(asker, token, now, now)
            if len(self._sessions) > _MOST:
                self._sessions.popitem(last=False)
        return value

    def find(self, value: str) -> tuple[Asker, str] | None:
        """Whose session it is and the hash of their token, or None if there is none or it has ended."""
        now = self._clock()
        with self._lock:
            session = self._sessions.get(_hash(value))
            if session is None:
                return None
            if now - session.seen > _IDLE or now - session.begun > _LONGEST:
                del self._sessions[_hash(value)]
                return None
            session.seen = now
            self._sessions.move_to_end(_hash(value))
            return session.asker, session.token

    def end(self, value: str) -> None:
        """End a session, if there is one."""
        with self._lock:
            self._sessions.pop(_hash(value), None)


def _hash(value: str) -> str:
    return hashlib.sha256(value.encode("utf-8", "surrogateescape")).hexdigest()
