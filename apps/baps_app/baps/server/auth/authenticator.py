"""Who is asking: a token with the request, or a browser that has signed in."""

from __future__ import annotations

import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastapi import HTTPException

from baps.errors import BapsError
from baps.server.auth.browser_sessions import Sessions
from baps.server.auth.login_throttle import LoginThrottle, network_of
from baps.server.auth.openid import OpenId
from baps.server.middleware.root_path import root_path
from baps.server.request_context import Principal
from baps.site.openid_settings import read_openid
from baps.site.settings import Settings
from baps.site.users import User, Users

_OURS = (None, "same-origin", "none")
"""Values of Sec-Fetch-Site: of a browser that says nothing, a page of this server, and what a user typed."""

_MOST_VALUES = 8
"""Of one cookie that are looked at."""

_MOST_OF_ADDRESS = 100
"""Failures of one address under all names: many people may sit behind it."""

_MOST_KNOWN = 4096

_OPENID = " (openid)"
"""What a user of the provider is called beside their name, where this server has a user of that name."""


@dataclass(frozen=True)
class Cookie:
    """A cookie of this server, as browsers know it.

    Attributes:
        name: over https one that no other host and no plain http can set.
        path: that it is sent to. Below a root path, the host's other servers do not get it.
        secure: whether it goes over https alone.
    """

    name: str
    path: str
    secure: bool

    def values(self, header: str) -> list[str]:
        """Its values in a Cookie header: several, where another server of this host has set one of its name."""
        pairs = (pair.strip().partition("=") for pair in header.split(";"))
        return list(dict.fromkeys(value for name, _, value in pairs if name == self.name))[:_MOST_VALUES]


def cookie_of(scope: Mapping[str, Any], name: str = "baps") -> Cookie:
    """The cookie of a name, that of the session or another, for the scheme and the root path of a request."""
    root, secure = root_path(scope), scope["scheme"] == "https"
    prefix = ("__Secure-" if root else "__Host-") if secure else ""  # __Host- wants the path /.
    return Cookie(f"{prefix}{name}", root or "/", secure)


class Authenticator:
    """What lets people in.

    Args:
        users: of this server, or None.
        openid: whose users are let in too, or None.
    """

    def __init__(self, users: Users | None, openid: OpenId | None) -> None:
        self.users, self.openid = users, openid
        self.sessions, self._tokens = Sessions(), LoginThrottle()
        self._logins, self._logins_of_address = LoginThrottle(), LoginThrottle(_MOST_OF_ADDRESS)
        self._known, self._lock = OrderedDict[str, None](), threading.Lock()

    @classmethod
    def of(cls, site: Settings) -> Authenticator:
        """As the settings say.

        Raises:
            InputError: if the file of the OpenID provider cannot be used.
        """
        return cls(Users(site.users) if site.users else None, OpenId(read_openid(site.openid)) if site.openid else None)

    @property
    def needed(self) -> bool:
        """Whether there is anybody to tell apart; else whoever sits at the machine is let in."""
        return self.users is not None or self.openid is not None

    def with_token(self, token: str, address: str) -> Principal:
        """Whose token it is.

        Raises:
            HTTPException: 401 if it is nobody's, 403 if its owner has no role here, 429 after too many that were none.
            BapsError: if the users cannot be read, or the provider not be asked.
        """
        try:
            if self.users and (user := self.users.find(token)):
                return _asker(user)
            if self.openid and token.count(".") == 2:
                return self.of_provider(self.openid.asker(token))
            raise HTTPException(
                401, "The token is not known here, or has ended. Sign in again.", {"WWW-Authenticate": "Bearer"}
            )
        except HTTPException as refusal:
            # Whoever has a good one need never wait.
            if refusal.status_code == 401 and (seconds := self._tokens.count(network_of(address))):
                raise _too_many(seconds) from None
            raise

    def with_password(self, name: str, secret: str, address: str) -> tuple[str, Principal]:
        """A token for a user and their token or password, and whose it is.

        A right token of this server is let in whatever happened before. A password is taken to the provider only while
        this name from this address, and this address under all names, have not failed too often.

        Raises:
            HTTPException: as ``with_token``, and 400 if the provider takes no passwords.
            BapsError: as there.
        """
        ours = self.users is not None and name in self.users.all()
        if self.users and ours and (user := self.users.find(secret)) and user.name == name:
            return secret, _asker(user)
        # Counted before the provider is asked, or many attempts at once would all be let through.
        who = f"{_folded(name)} {network_of(address)}"
        counted = [(self._logins, who)]
        if who not in self._known:  # One who guesses keeps out nobody who was let in from there before.
            counted.append((self._logins_of_address, network_of(address)))
        for number, (attempts, key) in enumerate(counted):
            if seconds := attempts.count(key):
                _take_back(counted[:number])
                raise _too_many(seconds)
        try:
            if self.openid is None or ours:
                raise HTTPException(
                    401, "User or token is wrong, or the token has ended.", {"WWW-Authenticate": "Bearer"}
                )
            given, asker = self.openid.with_password(name, secret)
        except (HTTPException, BapsError) as error:
            if not (isinstance(error, HTTPException) and error.status_code == 401):
                _take_back(counted)
            raise
        _take_back(counted)
        self._know(who)
        return given, self.of_provider(asker)

    def of_provider(self, asker: Principal) -> Principal:
        """Return a user of the provider under a name that no user of this server has.

        Providers let users choose their names: one must not count as the author of another's labels.

        Raises:
            BapsError: if the users cannot be read.
        """
        taken = self.users is not None and asker.name in self.users.all()
        return replace(asker, name=f"{asker.name}{_OPENID}") if taken or asker.name.endswith(_OPENID) else asker

    def _know(self, who: str) -> None:
        """Remember a name and an address that the provider's password was right for; the oldest is forgotten."""
        with self._lock:
            self._known[who] = None
            self._known.move_to_end(who)
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)

    def begin(self, asker: Principal) -> str:
        """A session; the value of its cookie."""
        user = self._user(asker)
        return self.sessions.begin(asker, user.sha256 if user else "")

    def with_cookies(self, values: Iterable[str]) -> Principal | None:
        """Whose session the values of the cookie name, or None.

        Nobody's if they name sessions of several users: another server of this host may have planted one, so that a
        user works, unawares, under somebody else's name.

        Raises:
            BapsError: if the users cannot be read.
        """
        askers = {asker for value in values if (asker := self._with_cookie(value))}
        return askers.pop() if len(askers) == 1 else None

    def _with_cookie(self, value: str) -> Principal | None:
        found = self.sessions.find(value)
        if found is None:
            return None
        asker, token = found
        if asker.by == "openid":
            return asker
        user = self._user(asker)  # Who was removed, or has a new token, is out; a new role counts at once.
        return _asker(user) if user and user.sha256 == token and not user.expired else None

    def _user(self, asker: Principal) -> User | None:
        return self.users.all().get(asker.name) if self.users and asker.by == "token" else None


def _too_many(seconds: int) -> HTTPException:
    return HTTPException(
        429, f"Too many sign-ins failed. Try again in {seconds} seconds.", {"Retry-After": str(seconds)}
    )


def _take_back(counted: Iterable[tuple[LoginThrottle, str]]) -> None:
    for attempts, key in counted:
        attempts.take_back(key)


def _folded(name: str) -> str:
    """A user's name as a key: providers take one name in many spellings."""
    return unicodedata.normalize("NFKC", name).casefold().strip()[:200]


def is_foreign(headers: Mapping[str, str]) -> bool:
    """Whether a request says that a page of another origin sent it."""
    origin = headers.get("origin", "")
    return (bool(origin) and origin.partition("://")[2] != headers.get("host", "")) or (
        headers.get("sec-fetch-site") not in _OURS
    )


def is_link(headers: Mapping[str, str]) -> bool:
    """Whether a request says that it opens a page of its own, as a link does; such a page sees nothing of it."""
    opens = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return opens and "origin" not in headers


def is_framed(headers: Mapping[str, str]) -> bool:
    """Whether a request says that its answer is to be shown within a page of another origin."""
    within = headers.get("sec-fetch-dest") in ("iframe", "frame", "fencedframe", "embed", "object")
    return within and headers.get("sec-fetch-site") not in _OURS


def cookies_count(method: str, headers: Mapping[str, str]) -> bool:
    """Whether the cookies of a request mean that its user wants it: another page may have made the browser send it.

    One that changes something must say that a page of ours sent it. Others may say nothing, as browsers do over plain
    HTTP; the cookie does not come with them from other sites (SameSite=Strict).
    """
    if is_foreign(headers):
        return False
    return method in ("GET", "HEAD") or "origin" in headers or headers.get("sec-fetch-site") == "same-origin"


def _asker(user: User) -> Principal:
    return Principal(user.name, user.role, "token")
