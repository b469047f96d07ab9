"""Authenticate users: by a token, by a password, or by the session of a browser."""

from __future__ import annotations

import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastapi import HTTPException

from baps.errors import BapsError
from baps.server.auth.browser_sessions import BrowserSessions, SessionInfo
from baps.server.auth.login_throttle import LoginThrottle, network_key
from baps.server.auth.openid import OpenId
from baps.server.middleware.root_path import root_path
from baps.server.request_context import Principal
from baps.site.openid_settings import read_openid
from baps.site.settings import Settings
from baps.site.users import User, Users

_SAME_ORIGIN = (None, "same-origin", "none")
"""Values of Sec-Fetch-Site: not sent, from a page of this server, or from an address that the user typed."""

_MAX_COOKIE_VALUES = 8
"""Maximum number of values of one cookie that are checked."""

_MAX_FAILURES_PER_ADDRESS = 100
"""Maximum number of failed sign-ins of one address under all names. Many people may share an address."""

_MAX_TRUSTED = 4096
"""Maximum number of pairs of name and address that are remembered after a successful sign-in."""

_OPENID_SUFFIX = " (openid)"
"""Suffix of the name of a provider's user if this server has a user of the same name."""


@dataclass(frozen=True)
class Cookie:
    """A cookie of this server.

    Attributes:
        name: Name; over https, with a prefix so that no other host and no plain http can set the cookie.
        path: Path that browsers send it to. Below a root path, other servers of the host do not get it.
        secure: Whether browsers send it over https only.
    """

    name: str
    path: str
    secure: bool

    def values(self, header: str) -> list[str]:
        """Return its values in a Cookie header. There may be several if another server of this host has set one.

        Args:
            header: Value of the header.
        """
        pairs = (pair.strip().partition("=") for pair in header.split(";"))
        return list(dict.fromkeys(value for name, _, value in pairs if name == self.name))[:_MAX_COOKIE_VALUES]


def cookie_for(scope: Mapping[str, Any], name: str = "baps") -> Cookie:
    """Return the cookie for the scheme and the root path of a request.

    Args:
        scope: ASGI scope of the request.
        name: Name without the prefix; the default is that of the session's cookie.
    """
    root, secure = root_path(scope), scope["scheme"] == "https"
    prefix = ("__Secure-" if root else "__Host-") if secure else ""  # __Host- requires the path /.
    return Cookie(f"{prefix}{name}", root or "/", secure)


class Authenticator:
    """Checks tokens, passwords and sessions.

    Args:
        users: Users of this server, or None.
        openid: OpenID provider whose users may sign in too, or None.
    """

    def __init__(self, users: Users | None, openid: OpenId | None) -> None:
        self.users, self.openid = users, openid
        self.sessions, self._tokens = BrowserSessions(), LoginThrottle()
        self._logins, self._logins_of_address = LoginThrottle(), LoginThrottle(_MAX_FAILURES_PER_ADDRESS)
        self._trusted, self._lock = OrderedDict[str, None](), threading.Lock()

    @classmethod
    def from_settings(cls, site: Settings) -> Authenticator:
        """Create an authenticator from the settings.

        Args:
            site: Settings of the site.

        Raises:
            InputError: if the file of the OpenID provider cannot be used.
        """
        return cls(Users(site.users) if site.users else None, OpenId(read_openid(site.openid)) if site.openid else None)

    @property
    def required(self) -> bool:
        """Whether users must sign in; otherwise anyone at this machine is served."""
        return self.users is not None or self.openid is not None

    def authenticate_token(self, token: str, address: str) -> Principal:
        """Return the user of a token. Valid tokens are never throttled.

        Args:
            token: Token of this server or of the provider.
            address: Address of the client.

        Raises:
            HTTPException: 401 if the token is not valid, 403 if its user has no role here, 429 after too many invalid
                tokens.
            BapsError: if the users cannot be read, or the provider cannot be reached.
        """
        try:
            if self.users and (user := self.users.find(token)):
                return _principal_of(user)
            if self.openid and token.count(".") == 2:
                return self.as_provider_user(self.openid.authenticate_token(token))
            raise HTTPException(
                401, "The token is not known here, or has ended. Sign in again.", {"WWW-Authenticate": "Bearer"}
            )
        except HTTPException as refusal:
            if refusal.status_code == 401 and (seconds := self._tokens.count(network_key(address))):
                raise _too_many(seconds) from None
            raise

    def authenticate_password(self, name: str, secret: str, address: str) -> tuple[str, Principal]:
        """Return a token for a user name and a token or password, and the user.

        A valid token of this server is never throttled. A password is sent to the provider only while neither this name
        from this address, nor this address under all names, has failed too often.

        Args:
            name: Name of the user.
            secret: Token of this server, or password at the provider.
            address: Address of the client.

        Returns:
            The token, and its user.

        Raises:
            HTTPException: As ``authenticate_token``, and 400 if the provider accepts no passwords.
            BapsError: As ``authenticate_token``.
        """
        is_local_user = self.users is not None and name in self.users.all()
        if self.users and is_local_user and (user := self.users.find(secret)) and user.name == name:
            return secret, _principal_of(user)
        # Counted before the provider is reached: otherwise many concurrent attempts would all pass.
        name_and_address = f"{_normalize_name(name)} {network_key(address)}"
        counted = [(self._logins, name_and_address)]
        if name_and_address not in self._trusted:  # Users who signed in from this address before are not locked out.
            counted.append((self._logins_of_address, network_key(address)))
        for number, (throttle, key) in enumerate(counted):
            if seconds := throttle.count(key):
                _uncount(counted[:number])
                raise _too_many(seconds)
        try:
            if self.openid is None or is_local_user:
                raise HTTPException(
                    401, "User or token is wrong, or the token has ended.", {"WWW-Authenticate": "Bearer"}
                )
            token, principal = self.openid.exchange_password(name, secret)
        except (HTTPException, BapsError) as error:
            if not (isinstance(error, HTTPException) and error.status_code == 401):
                _uncount(counted)
            raise
        _uncount(counted)
        self._trust(name_and_address)
        return token, self.as_provider_user(principal)

    def as_provider_user(self, principal: Principal) -> Principal:
        """Return a user of the provider under a name that no user of this server has.

        Providers let users choose their names. Without the suffix, one user could pass as the author of another user's
        labels.

        Args:
            principal: User of the provider.

        Raises:
            BapsError: if the users cannot be read.
        """
        taken = self.users is not None and principal.name in self.users.all()
        return (
            replace(principal, name=f"{principal.name}{_OPENID_SUFFIX}")
            if taken or principal.name.endswith(_OPENID_SUFFIX)
            else principal
        )

    def _trust(self, name_and_address: str) -> None:
        """Remember a name and an address with which a password was right. If there are too many, forget the oldest."""
        with self._lock:
            self._trusted[name_and_address] = None
            self._trusted.move_to_end(name_and_address)
            if len(self._trusted) > _MAX_TRUSTED:
                self._trusted.popitem(last=False)

    def begin_session(self, principal: Principal) -> str:
        """Begin a session.

        Args:
            principal: User of the session.

        Returns:
            The value of its cookie.
        """
        user = self._user(principal)
        return self.sessions.begin(principal, user.sha256 if user else "")

    def authenticate_cookies(self, values: Iterable[str], is_use: bool = True) -> Principal | None:
        """Return the user of the session that the values of the cookie name, or None.

        If they name sessions of several users, none is valid: another server of this host may have set one of them, so
        that a user would unknowingly work under another user's name.

        Args:
            values: Values of the cookie.
            is_use: Whether a person uses the session, see ``BrowserSessions.find``.

        Raises:
            BapsError: if the users cannot be read.
        """
        principals = {principal for value in values if (principal := self._authenticate_cookie(value, is_use))}
        return principals.pop() if len(principals) == 1 else None

    def _authenticate_cookie(self, value: str, is_use: bool) -> Principal | None:
        session = self.sessions.find(value, is_use)
        return self._current(*session) if session else None

    def active_sessions(self) -> list[tuple[SessionInfo, Principal]]:
        """List the sessions whose users are still known, the last used first, each with its user as of now.

        Raises:
            BapsError: if the users cannot be read.
        """
        sessions = ((one, self._current(one.principal, one.token_sha256)) for one in self.sessions.all())
        return [(one, principal) for one, principal in sessions if principal]

    def _current(self, principal: Principal, token_sha256: str) -> Principal | None:
        """Return the user of a session as of now, or None if the token of the session is not valid any more."""
        if principal.by == "openid":
            return principal
        user = self._user(principal)  # Read again, because users are removed and roles change.
        return _principal_of(user) if user and user.sha256 == token_sha256 and not user.expired else None

    def _user(self, principal: Principal) -> User | None:
        return self.users.all().get(principal.name) if self.users and principal.by == "token" else None


def _too_many(seconds: int) -> HTTPException:
    return HTTPException(
        429, f"Too many sign-ins failed. Try again in {seconds} seconds.", {"Retry-After": str(seconds)}
    )


def _uncount(counted: Iterable[tuple[LoginThrottle, str]]) -> None:
    for throttle, key in counted:
        throttle.uncount(key)


def _normalize_name(name: str) -> str:
    """Return a user's name as a key. Providers accept one name in several spellings."""
    return unicodedata.normalize("NFKC", name).casefold().strip()[:200]


def is_cross_origin(headers: Mapping[str, str]) -> bool:
    """Return whether a page of another origin sent a request.

    Args:
        headers: Headers of the request, with names in lower case.
    """
    origin = headers.get("origin", "")
    return (bool(origin) and origin.partition("://")[2] != headers.get("host", "")) or (
        headers.get("sec-fetch-site") not in _SAME_ORIGIN
    )


def is_page_navigation(headers: Mapping[str, str]) -> bool:
    """Return whether a request opens a page, as a link does. The page with the link cannot read the response.

    Args:
        headers: Headers of the request, with names in lower case.
    """
    navigates = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return navigates and "origin" not in headers


def is_cross_origin_frame(headers: Mapping[str, str]) -> bool:
    """Return whether a page of another origin would show the response in a frame.

    Args:
        headers: Headers of the request, with names in lower case.
    """
    in_frame = headers.get("sec-fetch-dest") in ("iframe", "frame", "fencedframe", "embed", "object")
    return in_frame and headers.get("sec-fetch-site") not in _SAME_ORIGIN


def trusts_cookies(method: str, headers: Mapping[str, str]) -> bool:
    """Return whether the cookies of a request may authenticate it. A page of another site may have sent the request.

    A request that changes something must name its origin, and the origin must be this server. Other requests need not
    name one: browsers do not over plain HTTP, and they do not send the cookie with requests from other sites
    (SameSite=Strict).

    Args:
        method: HTTP method.
        headers: Headers of the request, with names in lower case.
    """
    if is_cross_origin(headers):
        return False
    return method in ("GET", "HEAD") or "origin" in headers or headers.get("sec-fetch-site") == "same-origin"


def _principal_of(user: User) -> Principal:
    return Principal(user.name, user.role, "token")
