"""Who is asking: a token with the request, or a browser that has signed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException

from baps.openid_settings import read_openid
from baps.settings import Settings
from baps.users import User, Users
from web.asking import Asker
from web.attempts import Attempts
from web.openid import OpenId
from web.root_path import root_path
from web.sessions import Sessions


@dataclass(frozen=True)
class Cookie:
    """The cookie of a session, as browsers know it.

    Attributes:
        name: over https one that no other host and no plain http can set.
        path: that it is sent to. Below a root path, the host's other servers do not get it.
        secure: whether it goes over https alone.
    """

    name: str
    path: str
    secure: bool

    def value(self, header: str) -> str:
        """Its value in a Cookie header, or ""; of several with its name, the one with the longest path comes first."""
        pairs = (pair.strip().partition("=") for pair in header.split(";"))
        return next((value for name, _, value in pairs if name == self.name), "")


def cookie_of(scope: Mapping[str, Any]) -> Cookie:
    """The cookie for the scheme and the root path of a request."""
    root, secure = root_path(scope), scope["scheme"] == "https"
    prefix = ("__Secure-" if root else "__Host-") if secure else ""  # __Host- wants the path /.
    return Cookie(f"{prefix}baps", root or "/", secure)


class SigningIn:
    """What lets people in.

    Args:
        users: of this server, or None.
        openid: whose users are let in too, or None.
    """

    def __init__(self, users: Users | None, openid: OpenId | None) -> None:
        self.users, self.openid = users, openid
        self.sessions, self._logins, self._tokens = Sessions(), Attempts(), Attempts()

    @classmethod
    def of(cls, site: Settings) -> SigningIn:
        """As the settings say.

        Raises:
            InputError: if the file of the OpenID provider cannot be used.
        """
        return cls(Users(site.users) if site.users else None, OpenId(read_openid(site.openid)) if site.openid else None)

    @property
    def needed(self) -> bool:
        """Whether there is anybody to tell apart; else whoever sits at the machine is let in."""
        return self.users is not None or self.openid is not None

    def with_token(self, token: str, address: str) -> Asker:
        """Whose token it is.

        Raises:
            HTTPException: 401 if it is nobody's, 403 if its owner has no role here, 429 after too many that were none.
            BapsError: if the users cannot be read, or the provider not be asked.
        """
        try:
            if self.users and (user := self.users.find(token)):
                return _asker(user)
            if self.openid and token.count(".") == 2:
                return self.openid.asker(token)
            raise HTTPException(
                401, "The token is not known here, or has ended. Sign in again.", {"WWW-Authenticate": "Bearer"}
            )
        except HTTPException as refusal:
            if refusal.status_code == 401:
                self._check(self._tokens, address)  # Whoever has a good one need never wait.
                self._tokens.failed(address)
            raise

    def with_password(self, name: str, secret: str, address: str) -> tuple[str, Asker]:
        """A token for a user and their token or password, and whose it is.

        Raises:
            HTTPException: as ``with_token``, and 400 if the provider takes no passwords.
            BapsError: as there.
        """
        self._check(self._logins, address)
        try:
            if self.users and name in self.users.all():
                user = self.users.find(secret)
                if user and user.name == name:
                    return secret, _asker(user)
            elif self.openid:
                return self.openid.with_password(name, secret)
            raise HTTPException(401, "User or token is wrong, or the token has ended.", {"WWW-Authenticate": "Bearer"})
        except HTTPException as refusal:
            if refusal.status_code == 401:
                self._logins.failed(address)
            raise

    def begin(self, asker: Asker) -> str:
        """A session; the value of its cookie."""
        user = self._user(asker)
        return self.sessions.begin(asker, user.sha256 if user else "")

    def with_cookie(self, value: str) -> Asker | None:
        """Whose session a cookie names, or None.

        Args:
            value: of the cookie, or "".

        Raises:
            BapsError: if the users cannot be read.
        """
        found = self.sessions.find(value)
        if found is None:
            return None
        asker, token = found
        if asker.by == "openid":
            return asker
        user = self._user(asker)  # Who was removed, or has a new token, is out; a new role counts at once.
        return _asker(user) if user and user.sha256 == token and not user.expired else None

    def _user(self, asker: Asker) -> User | None:
        return self.users.all().get(asker.name) if self.users and asker.by == "token" else None

    @staticmethod
    def _check(attempts: Attempts, address: str) -> None:
        if seconds := attempts.wait(address):
            raise HTTPException(
                429, f"Too many sign-ins failed. Try again in {seconds} seconds.", {"Retry-After": str(seconds)}
            )


def is_foreign(headers: Mapping[str, str]) -> bool:
    """Whether a request says that a page of another origin sent it."""
    origin = headers.get("origin", "")
    return bool(origin) and origin.partition("://")[2] != headers.get("host", "")


def cookies_count(method: str, headers: Mapping[str, str]) -> bool:
    """Whether the cookies of a request mean that its user wants it: another page may have made the browser send it.

    One that changes something must say that a page of ours sent it. Others may say nothing, as browsers do over plain
    HTTP; the cookie does not come with them from other sites (SameSite=Strict).
    """
    site = headers.get("sec-fetch-site")
    if is_foreign(headers) or site not in (None, "same-origin", "none"):
        return False
    return method in ("GET", "HEAD") or "origin" in headers or site == "same-origin"


def _asker(user: User) -> Asker:
    return Asker(user.name, user.role, "token")
