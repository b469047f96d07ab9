"""Routes to sign in: the login page for browsers, and the routes below /auth for 3D Slicer.

The login page needs no scripts. It posts a user name and a token. With an OpenID provider, the browser goes to the
provider and returns with a code (with PKCE, a state and a nonce). The state of that flow is in a cookie of the browser,
encrypted with a key of this process, so the server stores nothing about users who have not signed in.
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
from baps.server.auth.authenticator import Authenticator, Cookie, cookie_for, trusts_cookies
from baps.server.auth.guard import address_of
from baps.server.auth.openid import OpenId
from baps.server.middleware.root_path import root_path
from baps.server.request_context import Principal, context_of
from baps.server.routes.pages import has_pacs, page

_FLOW_SECONDS = 600
_MAX_TARGET_BYTES = 1500
"""Maximum length of the path to open afterwards, because browsers limit a cookie to 4096 bytes."""


@dataclass(frozen=True)
class _Flow:
    """A sign-in at the provider that a browser has begun.

    Attributes:
        state: Value that the browser must return with.
        nonce: Value that the token must contain.
        verifier: Secret that belongs to the code (PKCE).
        target: Path to open afterwards.
    """

    state: str
    nonce: str
    verifier: str
    target: str


class Login:
    """The routes by which users sign in and out, from 3D Slicer and in a browser.

    Args:
        authenticator: Checks tokens and passwords, and keeps the sessions.
    """

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator, self._cipher = authenticator, Fernet(Fernet.generate_key())

    # For 3D Slicer.

    def is_needed(self) -> dict[str, Any]:
        """Return whether users must sign in, and the OpenID provider, in MONAI Label's format."""
        openid = self._authenticator.openid
        return {
            "enabled": self._authenticator.required,
            "client_id": openid.settings.client_id if openid else "baps",
            "realm": openid.settings.issuer if openid else "",
        }

    def token(self, request: Request, username: str = Form(""), password: str = Form("")) -> dict[str, str | None]:
        """Return a bearer token for a user and a password.

        The password is the user's token, or their password at the OpenID provider.
        """
        if not self._authenticator.required:
            return {"access_token": None, "token_type": None}
        token, context_of(request).principal = self._authenticator.authenticate_password(
            username, password, address_of(request.scope)
        )
        return {"access_token": token, "token_type": "bearer"}

    def is_valid(self, request: Request) -> dict[str, Any]:
        """Return the user of the token in the request."""
        principal = context_of(request).principal
        assert principal is not None
        return {
            "username": principal.name or "local",
            "email": None,
            "name": principal.name,
            "roles": [principal.role.value],
        }

    # For browsers.

    def page(self, request: Request, next: str = "") -> Response:  # noqa: A002 (its name in the address)
        """Show the login page, or the button to sign out."""
        if not self._authenticator.required:
            return RedirectResponse(_safe_target(request, next), 303)
        return self._page(request, next, principal=self._current_user(request))

    def sign_in(
        self,
        request: Request,
        username: str = Form(""),
        password: str = Form(""),
        next: str = Form(""),  # noqa: A002
    ) -> Response:
        """Sign in with the form of the login page."""
        if not self._authenticator.required:
            return RedirectResponse(_safe_target(request, next), 303)
        try:
            _, principal = self._authenticator.authenticate_password(username, password, address_of(request.scope))
        except HTTPException as refusal:
            return self._page(request, next, str(refusal.detail), refusal.status_code, dict(refusal.headers or {}))
        except BapsError:
            return self._page(request, next, "Nobody can sign in now. Tell the operator of the server.", 503)
        context_of(request).principal = principal
        return self._start_session(request, principal, RedirectResponse(_safe_target(request, next), 303))

    def before_sign_out(self, request: Request) -> Response:
        """Redirect to the login page, which has the button to sign out.

        A link or an image on another page must not end a session.
        """
        return RedirectResponse(f"{root_path(request.scope)}/login", 303)

    def sign_out(self, request: Request) -> Response:
        """End the session, unless a page of another origin sent the request."""
        reply = RedirectResponse(f"{root_path(request.scope)}/login", 303)
        if trusts_cookies(request.method, request.headers):
            context_of(request).principal = self._current_user(request)
            # OHIF stores the user's choices. Below a root path, other servers of the host have stored data too.
            reply.headers["Clear-Site-Data"] = '"cache"' if root_path(request.scope) else '"cache", "storage"'
            cookie = cookie_for(request.scope)
            for value in cookie.values(request.headers.get("cookie", "")):
                self._authenticator.sessions.end(value)
            reply.delete_cookie(cookie.name, cookie.path, secure=cookie.secure, httponly=True, samesite="strict")
        return reply

    def to_provider(self, request: Request, next: str = "") -> Response:  # noqa: A002
        """Redirect to the OpenID provider."""
        if self._authenticator.openid is None:
            raise HTTPException(
                404, f"This server has no OpenID provider. Sign in at {root_path(request.scope)}/login."
            )
        state, nonce, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(64)
        try:
            address = self._authenticator.openid.authorization_url(_redirect_uri(request), state, nonce, verifier)
        except BapsError as error:
            return self._page(request, next, str(error), 503)
        target = _safe_target(request, next)
        target = target if len(target.encode()) <= _MAX_TARGET_BYTES else _safe_target(request, "")
        flow = _Flow(state, nonce, verifier, target)
        sealed = self._cipher.encrypt(json.dumps(asdict(flow), ensure_ascii=False).encode()).decode()
        reply, cookie = RedirectResponse(address, 303), _flow_cookie(request)
        # Lax: it must come along from the provider's page. It opens nothing by itself.
        reply.set_cookie(
            cookie.name, sealed, _FLOW_SECONDS, path=cookie.path, secure=cookie.secure, httponly=True, samesite="lax"
        )
        return reply

    def from_provider(self, request: Request, state: str = "", code: str = "", iss: str = "") -> Response:
        """Sign in with the code that the OpenID provider sent.

        The browser must have begun the sign-in here, and can finish it once.
        """
        openid, flow = self._authenticator.openid, self._flow(request, state)
        if openid is None or flow is None or (iss and iss != openid.settings.issuer):
            return self._page(request, "", "This sign-in did not begin here, or took too long. Begin again.", 400)
        reply, cookie = self._finish_sign_in(request, openid, flow, code), _flow_cookie(request)
        reply.delete_cookie(cookie.name, cookie.path, secure=cookie.secure, httponly=True, samesite="lax")
        return reply

    def _finish_sign_in(self, request: Request, openid: OpenId, flow: _Flow, code: str) -> Response:
        if not code:
            return self._page(request, flow.target, "The hospital's login refused you. Try again.", 401)
        try:
            principal = openid.exchange_code(code, _redirect_uri(request), flow.nonce, flow.verifier)
            principal = self._authenticator.as_provider_user(principal)
        except HTTPException as refusal:
            return self._page(request, flow.target, str(refusal.detail), refusal.status_code)
        except BapsError as error:
            return self._page(request, flow.target, str(error), 503)
        context_of(request).principal = principal
        # A page instead of a redirect: in a redirect chain from the provider, the browser would omit the strict cookie.
        return self._start_session(
            request, principal, self._page(request, flow.target, principal=principal, go=flow.target)
        )

    def _flow(self, request: Request, state: str) -> _Flow | None:
        """Return the sign-in in the browser's cookie, if it has this state."""
        for encrypted in _flow_cookie(request).values(request.headers.get("cookie", "")):
            try:
                flow = _Flow(**json.loads(self._cipher.decrypt(encrypted.encode(errors="replace"), _FLOW_SECONDS)))
            except InvalidToken:
                continue
            if secrets.compare_digest(flow.state.encode(), state.encode(errors="replace")):
                return flow
        return None

    def _start_session(self, request: Request, principal: Principal, reply: Response) -> Response:
        """Begin a session, and add its cookie to the reply."""
        value, cookie = self._authenticator.begin_session(principal), cookie_for(request.scope)
        reply.set_cookie(cookie.name, value, path=cookie.path, secure=cookie.secure, httponly=True, samesite="strict")
        return reply

    def _current_user(self, request: Request) -> Principal | None:
        if not trusts_cookies(request.method, request.headers):
            return None
        values = cookie_for(request.scope).values(request.headers.get("cookie", ""))
        return self._authenticator.authenticate_cookies(values)

    def _page(
        self,
        request: Request,
        target: str,
        sentence: str = "",
        status: int = 200,
        headers: dict[str, str] | None = None,
        principal: Principal | None = None,
        go: str = "",
    ) -> Response:
        return page(
            request,
            "login.html",
            status,
            headers or {},
            next=_safe_target(request, target),
            sentence=sentence,
            users=self._authenticator.users is not None,
            openid=self._authenticator.openid is not None,
            name=principal.name if principal else "",
            go=go,
        )


def _safe_target(request: Request, target: str) -> str:
    """Return the target if it is a path of this server, otherwise the start page."""
    root = root_path(request.scope)
    below = target.removeprefix(root)
    is_unsafe = not target.startswith(f"{root}/") or below.startswith(("//", "/\\")) or "\\" in below
    is_unsafe = is_unsafe or not target.isprintable() or ".." in target.partition("?")[0].split("/")
    home = "/ohif/" if has_pacs() else "/"
    return f"{root}{home}" if is_unsafe or below.startswith(("/login", "/logout")) else target


def _flow_cookie(request: Request) -> Cookie:
    return cookie_for(request.scope, "baps-openid")


def _redirect_uri(request: Request) -> str:
    """Return the address that the provider redirects the browser to."""
    host, root = request.headers.get("host", ""), root_path(request.scope)
    return f"{request.url.scheme}://{host}{root}/login/openid/return"
