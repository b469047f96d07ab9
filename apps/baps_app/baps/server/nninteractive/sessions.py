"""Keep the sessions of nnInteractive's clients: leases, timeouts, and the memory that they take.

Who locks what, and why:

* ``Sessions`` has one lock for its table, the clocks and the bytes of all sessions. It is held for moments only: never
  while an array is unpacked or the model runs.
* Each ``Session`` has a lock for its image, prompts and masks. A request that reads or changes them holds it from
  beginning to end, so that two requests of one client follow each other. Nothing else is locked while a thread waits
  for it.
* A thread that holds the lock of a session may take the table's lock, to reserve memory; never the other way round, so
  there is no deadlock. A session is removed from the table without its lock: a request that still runs in it finishes,
  and its memory is freed when the request ends.
* The model has its own lock, see ``baps.blackbox``. Sessions share nothing but the model and its caches, whose keys
  name the image of a session.

A session ends in four ways: its client releases it; nothing but heartbeats came for the idle timeout; nothing at all
came for the liveness timeout, because the client has crashed; or the server stops. Timeouts end no session in which a
request runs.

What is left to do for an ended session, such as keeping its last mask, happens after its last request, without a lock,
and not in a request of another client: by the thread that watches the timeouts, or in the request that releases it.
Until then its memory counts, but not its place.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fastapi import HTTPException

from baps.server.nninteractive.volume import SegmentedVolume

logger = logging.getLogger(__name__)

_MAX_SWEEP_SECONDS = 5.0


@dataclass(frozen=True)
class Limits:
    """Limits on the sessions.

    Attributes:
        sessions: Maximum number of sessions.
        sessions_per_user: Maximum number of sessions of one user.
        max_bytes: Memory for all images and masks together, bytes.
        idle_seconds: Time after which a session ends if its client only sends heartbeats.
        liveness_seconds: Time after which a session ends if its client sends nothing.
    """

    sessions: int
    sessions_per_user: int
    max_bytes: int
    idle_seconds: float
    liveness_seconds: float


@dataclass(eq=False)
class Session:
    """The session of one client.

    Attributes:
        owner: Name of the user, "" if no login is needed.
        label: The organ that its address names, or "".
        last_active: Time of the last request other than a heartbeat, by the clock of ``Sessions``.
        last_seen: Time of the last request.
        may_save: Whether the user may save labels.
        running: Number of requests that are running.
        nbytes: Memory that is reserved for it, bytes.
        lock: Held while its volume is read or changed.
        volume: The image with its prompts and masks, or None before there is one.
        buffer: Shape and type of the client's mask, or None.
        autozoom: The flag that the client has set. It changes nothing here: the adapter chooses the zoom.
    """

    owner: str
    label: str
    last_active: float
    last_seen: float
    may_save: bool = False
    running: int = 0
    nbytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    volume: SegmentedVolume | None = None
    buffer: tuple[tuple[int, ...], str] | None = None
    autozoom: bool = True


class Sessions:
    """The sessions by their lease tokens.

    Args:
        limits: Limits on the sessions.
        clock: Returns the time in seconds.
        on_end: Called with each session that has ended, after its last request.
    """

    def __init__(
        self,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        on_end: Callable[[Session], None] = lambda _: None,
    ) -> None:
        self.limits, self._clock, self._on_end = limits, clock, on_end
        self._lock = threading.Lock()
        self._finished = threading.Condition(self._lock)
        self._sessions: dict[str, Session] = {}
        self._ended, self._finishing = list[Session](), list[Session]()
        self._sweeper: threading.Thread | None = None

    @property
    def nbytes(self) -> int:
        """Memory that is reserved for all sessions, bytes."""
        with self._lock:
            return sum(session.nbytes for session in self._all())

    def __len__(self) -> int:
        with self._lock:
            return len(self._sessions)

    def claim(self, owner: str, label: str, may_save: bool = False) -> str:
        """Begin a session.

        Args:
            owner: Name of the user.
            label: The organ that the address names, or "".
            may_save: Whether the user may save labels.

        Returns:
            Its lease token.

        Raises:
            HTTPException: 503 if there are too many sessions.
        """
        self.sweep()
        with self._lock:
            owned = sum(session.owner == owner for session in self._sessions.values())
            if len(self._sessions) >= self.limits.sessions or owned >= self.limits.sessions_per_user:
                raise _unavailable(
                    f"You have {owned} open sessions, and all users together {len(self._sessions)}; more are not "
                    "possible now. Close a viewer, or try again in a minute."
                )
            token, now = secrets.token_urlsafe(32), self._clock()
            self._sessions[token] = Session(owner, label, now, now, may_save)
            if self._sweeper is None or not self._sweeper.is_alive():
                self._sweeper = threading.Thread(target=self._sweep_often, name="nninteractive", daemon=True)
                self._sweeper.start()
        return token

    @contextmanager
    def using(self, token: str, owner: str, label: str, active: bool = True) -> Iterator[Session]:
        """Find a session and keep it from ending while the context lasts. Its lock is not taken.

        Args:
            token: The lease token.
            owner: Name of the user.
            label: The organ that the address names.
            active: Whether the request is one of a person, so that it postpones the idle timeout.

        Yields:
            The session.

        Raises:
            HTTPException: 410 if there is none, or it belongs to another user or another address.
        """
        self.sweep()
        with self._lock:
            session = self._find(token, owner, label)
            session.running += 1
            self._touch(session, active)
        try:
            yield session
        finally:
            with self._lock:
                session.running -= 1
                self._touch(session, active)

    def release(self, token: str, owner: str, label: str) -> None:
        """End a session. Nothing happens if it has ended.

        Args:
            token: The lease token.
            owner: Name of the user.
            label: The organ that the address names.
        """
        with self._lock:
            try:
                session = self._find(token, owner, label)
            except HTTPException:
                return
            del self._sessions[token]
            self._ended.append(session)
        self._finish_ended([session])

    def close(self, seconds: float) -> None:
        """End all sessions, because the server stops.

        Args:
            seconds: Maximum time to wait for sessions that another thread is finishing.
        """
        with self._lock:
            self._ended += self._sessions.values()
            self._sessions.clear()
        self._finish_ended()
        with self._finished:
            self._finished.wait_for(lambda: not self._finishing, seconds)

    def remaining_seconds(self, session: Session) -> float:
        """Return the time until a session ends unless its client does something.

        Args:
            session: The session.
        """
        return max(0.0, self.limits.idle_seconds - (self._clock() - session.last_active))

    def reserve(self, session: Session, nbytes: int) -> None:
        """Reserve memory for a session, in place of what it had.

        Args:
            session: The session.
            nbytes: Bytes that it needs in all.

        Raises:
            HTTPException: 413 if it is more than all sessions may have, 503 if others have it now, 410 if the session
                has ended.
        """
        limit = self.limits.max_bytes
        if nbytes > limit:
            raise HTTPException(
                413,
                f"The image needs {nbytes >> 20:,} MB with its masks; sessions have {limit >> 20:,} MB. Crop it, or "
                "have the server's operator raise nninteractive_mb.",
            )
        with self._lock:
            if session not in self._sessions.values():
                raise _gone()
            others = sum(one.nbytes for one in self._all() if one is not session)
            if others + nbytes > limit:
                raise _unavailable("Other sessions use the server's memory for images. Try again in a minute.")
            session.nbytes = nbytes

    def sweep(self) -> None:
        """End the sessions whose timeout has passed."""
        now, ended = self._clock(), 0
        with self._lock:
            for token, session in list(self._sessions.items()):
                is_dead = now - session.last_seen > self.limits.liveness_seconds
                is_idle = now - session.last_active > self.limits.idle_seconds
                if not session.running and (is_dead or is_idle):
                    self._ended.append(self._sessions.pop(token))
                    ended += 1
        if ended:
            logger.info("%d sessions of nnInteractive's clients ended by a timeout.", ended)

    def _sweep_often(self) -> None:
        """Sweep, and finish what has ended, until there are no sessions. ``claim`` starts this again."""
        while True:
            shortest = min(self.limits.liveness_seconds, self.limits.idle_seconds)
            time.sleep(min(max(shortest / 4, 0.1), _MAX_SWEEP_SECONDS))
            self.sweep()
            self._finish_ended()
            with self._lock:
                if not self._sessions and not self._ended:
                    self._sweeper = None
                    return

    def _finish_ended(self, among: Collection[Session] | None = None) -> None:
        """Call ``on_end`` for sessions, or all, that have ended and in which no request runs any more."""
        while True:
            with self._lock:
                ended = (one for one in self._ended if not one.running and (among is None or one in among))
                session = next(ended, None)
                if session is None:
                    return
                self._ended.remove(session)
                self._finishing.append(session)
            try:
                self._on_end(session)
            finally:
                with self._finished:
                    self._finishing.remove(session)
                    self._finished.notify_all()

    def _all(self) -> list[Session]:
        """Return the sessions whose memory counts."""
        return [*self._sessions.values(), *self._ended, *self._finishing]

    def _find(self, token: str, owner: str, label: str) -> Session:
        session = self._sessions.get(token)
        if session is None or (session.owner, session.label) != (owner, label):
            raise _gone()
        return session

    def _touch(self, session: Session, active: bool) -> None:
        session.last_seen = self._clock()
        if active:
            session.last_active = session.last_seen


def _gone() -> HTTPException:
    return HTTPException(410, "The session has ended, or was never yours. Connect again; the viewer keeps its mask.")


def _unavailable(sentence: str) -> HTTPException:
    return HTTPException(503, sentence, {"Retry-After": "30"})
