"""The login page, for browsers, and the three routes under /auth, for 3D Slicer.

Nothing of this needs a script. The page posts a user and a token; with an OpenID provider the browser goes there and
comes back with a code (with PKCE, a state and a nonce). What belongs to that way is kept in a cookie of the browser,
sealed with a key that this process alone has; nothing is kept here of who has not signed in.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from typing import Any

from cryptography.fernet import Fernet, InvalidToken
from fastapi import Form, HTTPException, Request
from fastapi.responses import RedirectResponse, Response

from baps.errors import BapsError
from baps.server.auth.authenticator import Authenticator, Cookie, cookie_of, cookies_count
from baps.server.auth.guard import address_of
from baps.server.auth.openid import OpenId
from baps.server.middleware.root_path import root_path
from baps.server.request_context import Principal, asked
from baps.server.routes.pages import has_pacs, page

_WAY_SECONDS = 600
_LONGEST_TARGET = 1500
"""Bytes of the address to go on to: browsers take no cookie of more than 4096."""


@dataclass(frozen=True)
class _Way:
    """Of a browser to the provider and back.

    Attributes:
        state: that it must come back with.
        nonce, verifier: that the token and the code belong to.
        target: where it goes then.
    """

    state: str
    nonce: str
    verifier: str
    target: str


class Login:
    """The routes.

    Args:
        signing_in: who is let in.
    """

    def __init__(self, signing_in: Authenticator) -> None:
        self._in, self._seal = signing_in, Fernet(Fernet.generate_key())

    # 3D Slicer's.

    def is_needed(self) -> dict[str, Any]:
        """Whether one has to sign in, and with whom, as MONAI Label says it."""
        openid = self._in.openid
        return {
            "enabled": self._in.needed,
            "client_id": openid.settings.client_id if openid else "baps",
            "realm": openid.settings.issuer if openid else "",
        }

    def token(self, request: Request, username: str = Form(""), password: str = Form("")) -> dict[str, str | None]:
        """A bearer token for a user and a password, which is their token or that of the provider."""
        if not self._in.needed:
            return {"access_token": None, "token_type": None}
        token, asked(request).asker = self._in.with_password(username, password, address_of(request.scope))
        return {"access_token": token, "token_type": "bearer"}

    def is_valid(self, request: Request) -> dict[str, Any]:
        """Whose the token is that came with the request."""
        asker = asked(request).asker
        assert asker is not None
        return {"username": asker.name or "local", "email": None, "name": asker.name, "roles": [asker.role.value]}

    # The browser's.

    def page(self, request: Request, next: str = "") -> Response:  # noqa: A002 (its name in the address)
        """The login page; for who is signed in, the way out."""
        if not self._in.needed:
            return RedirectResponse(_inside(request, next), 303)
        return self._page(request, next, asker=self._signed_in(request))

    def sign_in(
        self,
        request: Request,
        username: str = Form(""),
        password: str = Form(""),
        next: str = Form(""),  # noqa: A002
    ) -> Response:
        """What the page posts."""
        if not self._in.needed:
            return RedirectResponse(_inside(request, next), 303)
        try:
            _, asker = self._in.with_password(username, password, address_of(request.scope))
        except HTTPException as refusal:
            return self._page(request, next, str(refusal.detail), refusal.status_code, dict(refusal.headers or {}))
        except BapsError:
            return self._page(request, next, "Nobody can sign in now. Tell the operator of the server.", 503)
        asked(request).asker = asker
        return self._begun(request, asker, RedirectResponse(_inside(request, next), 303))

    def before_sign_out(self, request: Request) -> Response:
        """Send a browser to the login page, where the button is: no link and no picture ends a session."""
        return RedirectResponse(f"{root_path(request.scope)}/login", 303)

    def sign_out(self, request: Request) -> Response:
        """End the session; a page of another origin cannot have it ended."""
        reply = RedirectResponse(f"{root_path(request.scope)}/login", 303)
        if cookies_count(request.method, request.headers):
            asked(request).asker = self._signed_in(request)
            # OHIF keeps what was chosen. Below a root path, what other servers of the host have stored stays.
            reply.headers["Clear-Site-Data"] = '"cache"' if root_path(request.scope) else '"cache", "storage"'
            cookie = cookie_of(request.scope)
            for value in cookie.values(request.headers.get("cookie", "")):
                self._in.sessions.end(value)
            reply.delete_cookie(cookie.name, cookie.path, secure=cookie.secure, httponly=True, samesite="strict")
        return reply

    def to_provider(self, request: Request, next: str = "") -> Response:  # noqa: A002
        """Send the browser to the provider."""
        if self._in.openid is None:
            raise HTTPException(
                404, f"This server has no OpenID provider. Sign in at {root_path(request.scope)}/login."
            )
        state, nonce, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(64)
        try:
            address = self._in.openid.address_to_sign_in(_back(request), state, nonce, verifier)
        except BapsError as error:
            return self._page(request, next, str(error), 503)
        target = _inside(request, next)
        target = target if len(target.encode()) <= _LONGEST_TARGET else _inside(request, "")
        way = _Way(state, nonce, verifier, target)
        sealed = self._seal.encrypt(json.dumps(asdict(way), ensure_ascii=False).encode()).decode()
        reply, cookie = RedirectResponse(address, 303), _way_cookie(request)
        # Lax: it must come along from the provider's page. It opens nothing by itself.
        reply.set_cookie(
            cookie.name, sealed, _WAY_SECONDS, path=cookie.path, secure=cookie.secure, httponly=True, samesite="lax"
        )
        return reply

    def from_provider(self, request: Request, state: str = "", code: str = "", iss: str = "") -> Response:
        """The browser is back; nothing counts that it did not set out for. It can come back once."""
        openid, way = self._in.openid, self._way(request, state)
        if openid is None or way is None or (iss and iss != openid.settings.issuer):
            return self._page(request, "", "This sign-in was not begun here, or took too long. Begin again.", 400)
        reply, cookie = self._returned(request, openid, way, code), _way_cookie(request)
        reply.delete_cookie(cookie.name, cookie.path, secure=cookie.secure, httponly=True, samesite="lax")
        return reply

    def _returned(self, request: Request, openid: OpenId, way: _Way, code: str) -> Response:
        if not code:
            return self._page(request, way.target, "The hospital's login did not let you in. Try again.", 401)
        try:
            asker = self._in.of_provider(openid.with_code(code, _back(request), way.nonce, way.verifier))
        except HTTPException as refusal:
            return self._page(request, way.target, str(refusal.detail), refusal.status_code)
        except BapsError as error:
            return self._page(request, way.target, str(error), 503)
        asked(request).asker = asker
        # A page, and no redirection: one that begins at the provider would not take the strict cookie along.
        return self._begun(request, asker, self._page(request, way.target, asker=asker, go=way.target))

    def _way(self, request: Request, state: str) -> _Way | None:
        """The way that the browser's cookie holds, if it belongs to a state; the provider takes each code once."""
        for sealed in _way_cookie(request).values(request.headers.get("cookie", "")):
            try:
                way = _Way(**json.loads(self._seal.decrypt(sealed.encode(errors="replace"), _WAY_SECONDS)))
            except InvalidToken:
                continue
            if secrets.compare_digest(way.state.encode(), state.encode(errors="replace")):
                return way
        return None

    def _begun(self, request: Request, asker: Principal, reply: Response) -> Response:
        """The reply, with the cookie of a new session."""
        value, cookie = self._in.begin(asker), cookie_of(request.scope)
        reply.set_cookie(cookie.name, value, path=cookie.path, secure=cookie.secure, httponly=True, samesite="strict")
        return reply

    def _signed_in(self, request: Request) -> Principal | None:
        if not cookies_count(request.method, request.headers):
            return None
        return self._in.with_cookies(cookie_of(request.scope).values(request.headers.get("cookie", "")))

    def _page(
        self,
        request: Request,
        target: str,
        sentence: str = "",
        status: int = 200,
        headers: dict[str, str] | None = None,
        asker: Principal | None = None,
        go: str = "",
    ) -> Response:
        return page(
            request,
            "login.html",
            status,
            headers or {},
            next=_inside(request, target),
            sentence=sentence,
            users=self._in.users is not None,
            openid=self._in.openid is not None,
            name=asker.name if asker else "",
            go=go,
        )


def _inside(request: Request, target: str) -> str:
    """A path of this server, or its home if the target leads elsewhere."""
    root = root_path(request.scope)
    below = target.removeprefix(root)
    odd = not target.startswith(f"{root}/") or below.startswith(("//", "/\\")) or "\\" in below
    odd = odd or not target.isprintable() or ".." in target.partition("?")[0].split("/")
    home = "/ohif/" if has_pacs() else "/"
    return f"{root}{home}" if odd or below.startswith(("/login", "/logout")) else target


def _way_cookie(request: Request) -> Cookie:
    return cookie_of(request.scope, "baps-openid")


def _back(request: Request) -> str:
    """The address that the provider sends a browser back to."""
    host, root = request.headers.get("host", ""), root_path(request.scope)
    return f"{request.url.scheme}://{host}{root}/login/openid/return"
