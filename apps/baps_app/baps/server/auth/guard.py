"""ASGI middleware that authenticates users, refuses what they may not do, and records requests in the audit file."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

from anyio import CapacityLimiter, to_thread
from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baps.annotations.history import check_tag
from baps.errors import BapsError, InputError
from baps.server.access_policy import find_policy
from baps.server.auth.authenticator import (
    Authenticator,
    cookie_for,
    is_cross_origin,
    is_cross_origin_frame,
    is_page_navigation,
    trusts_cookies,
)
from baps.server.auth.request_audit import Audit
from baps.server.middleware.bodies import max_body_bytes, too_large
from baps.server.middleware.root_path import path_below, root_path
from baps.server.request_context import LOCAL_MACHINE, Principal, RequestContext
from baps.server.request_names import checked_name

_NAME_PARAMETERS = ("image", "id", "label", "tag", "session_id")
"""Query parameters that hold names."""

_PAGE = re.compile(r"/|/docs|/ohif(/.*)?|/web(/.*)?")
"""Pages that redirect to the login page."""

_LINK_TARGET = re.compile(rf"{_PAGE.pattern}|/login(/openid/return)?")
"""Pages that a link on a page of another origin may open."""

_UIDS = re.compile(r"/(studies|series)/([\d.]+)")
_UID_PARAMETERS = {
    "StudyInstanceUID": "studies",
    "0020000D": "studies",
    "SeriesInstanceUID": "series",
    "0020000E": "series",
}
"""DICOMweb query parameters that name a study or a series, by keyword or tag."""

_SIGN_IN_THREADS = CapacityLimiter(4)
"""Threads that authenticate users, beside the threads of the pool, which run the routes."""

_PROVIDER_THREADS = CapacityLimiter(4)
"""The same for tokens of an OpenID provider: if it does not respond, other users do not wait."""


@dataclass(frozen=True)
class Rules:
    """The rules of the guard.

    Attributes:
        authenticator: Checks tokens and sessions.
        audit: Records requests.
        origins: Other origins whose pages may send requests; ``*`` for all.
        max_bytes: Maximum size of a request that brings images.
        refuse: Makes the response to a request that the guard refuses: a page for a person, JSON for a program.
    """

    authenticator: Authenticator
    audit: Audit
    origins: Collection[str]
    max_bytes: int
    refuse: Callable[[Request, HTTPException], Response]


class Guard:
    """Passes on the requests that are served and that their user may send, and records them.

    Args:
        app: The application behind it.
        rules: The rules.
    """

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # A WebSocket; uvicorn answers it with a response.
            await JSONResponse({"detail": "WebSockets are not served here."}, 403)(scope, receive, send)
            return
        context = scope["baps.context"] = RequestContext(
            find_policy(scope["method"], path_below(scope), scope["query_string"].decode("latin-1"))
        )
        status = 500

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = await self._refusal(scope, context)
            if refusal:
                await refusal(scope, receive, send_and_note_status)
            else:
                await self.app(scope, receive, send_and_note_status)
        finally:
            if _is_audited(context, status, "authorization" in _headers(scope)):
                self.rules.audit.record(context, status)

    async def _refusal(self, scope: Scope, context: RequestContext) -> Response | None:
        """Check a request, and note its user and its image in the context.

        Returns:
            The response if the request is refused, else None.
        """
        headers = _headers(scope)
        try:
            self._check_origin(scope, headers)
            if context.policy is None or context.policy.role is not None:
                limiter = _PROVIDER_THREADS if headers.get("authorization", "").count(".") == 2 else _SIGN_IN_THREADS
                context.principal = await to_thread.run_sync(
                    self._authenticate, scope, headers, context, limiter=limiter
                )
            context.image = self._check_path(scope)
            self._check_role(scope, context)
            self._check_length(headers, context)
        except HTTPException as refusal:
            navigates = scope["method"] == "GET" and "text/html" in headers.get("accept", "")
            if refusal.status_code == 401 and navigates and _PAGE.fullmatch(path_below(scope)):
                query = scope["query_string"].decode("latin-1")
                target = scope["path"] + (f"?{query}" if query else "")
                return RedirectResponse(f"{root_path(scope)}/login?next={quote(target, safe='')}", 303)
            return self.rules.refuse(Request(scope), refusal)
        except InputError as error:
            return self.rules.refuse(Request(scope), HTTPException(400, str(error)))
        return None

    def _check_origin(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Refuse requests from pages of other origins, except links to the pages of this server.

        Browsers send Sec-Fetch-Site with requests to https and to their own machine; programs do not.

        Raises:
            HTTPException: 403.
        """
        if is_cross_origin_frame(headers):
            raise HTTPException(403, "The pages of this server cannot be shown within those of others.")
        origins = self.rules.origins
        if "*" in origins or headers.get("origin") in origins:
            return
        is_read, is_target = scope["method"] in ("GET", "HEAD"), _LINK_TARGET.fullmatch(path_below(scope))
        is_link = is_read and is_page_navigation(headers) and is_target
        if is_cross_origin(headers) and not is_link:
            raise HTTPException(403, "Requests from pages of other origins are refused.")

    def _authenticate(self, scope: Scope, headers: Mapping[str, str], context: RequestContext) -> Principal:
        """Authenticate the user of a request.

        Raises:
            HTTPException: 401 if the user is unknown, 503 if the users cannot be read, and as ``Authenticator``.
        """
        authenticator = self.rules.authenticator
        if not authenticator.required:
            return _local_user(scope, headers)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        try:
            if scheme.lower() == "bearer":
                return authenticator.authenticate_token(token.strip(), address_of(scope))
            if not scheme and trusts_cookies(scope["method"], headers):
                is_use = context.policy is None or not context.policy.automatic
                values = cookie_for(scope).values(headers.get("cookie", ""))
                principal = authenticator.authenticate_cookies(values, is_use)
                if principal:
                    return principal
        except BapsError as error:
            raise HTTPException(503, _public_message(error)) from error
        raise HTTPException(
            401,
            f"Sign in first: with a token (Authorization: Bearer), or at {root_path(scope)}/login.",
            {"WWW-Authenticate": "Bearer"},
        )

    @staticmethod
    def _check_path(scope: Scope) -> str:
        """Refuse names and paths that lead outside what is served.

        Returns:
            The image that the request names, or "".
        """
        path, raw = path_below(scope), scope.get("raw_path", scope["path"].encode()).decode("latin-1")
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        decoded = unquote(unquote(raw))
        if ".." in decoded.split("/") or "\\" in decoded or "%2f" in raw.lower():
            raise HTTPException(400, "The path of the request leads outside what is served.")
        if path.startswith("/session") and query.get("uncompress", "").lower() not in ("", "false", "0"):
            raise HTTPException(400, "Archives are not unpacked; send one image file.")
        for name in _NAME_PARAMETERS:
            if query.get(name):
                checked_name(query[name], name)
        if query.get("tag"):
            check_tag(query["tag"])
        return _requested_image(path, query)

    @staticmethod
    def _check_role(scope: Scope, context: RequestContext) -> None:
        if context.policy is None:
            raise HTTPException(
                403, f"{scope['method']} {path_below(scope)} is not served here; no viewer asks for it."
            )
        needed, principal = context.policy.role, context.principal
        if needed is not None and principal is not None and not principal.role.may(needed):
            raise HTTPException(
                403,
                f"To {context.policy.action} you need the role {needed.value}; yours is {principal.role.value}. "
                "Ask the operator of the server.",
            )

    def _check_length(self, headers: Mapping[str, str], context: RequestContext) -> None:
        limit = max_body_bytes(context, self.rules.max_bytes)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > limit:
            raise too_large(limit)


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _requested_image(path: str, query: Mapping[str, str]) -> str:
    """Return the image or session, or the series or study of the PACS, that a request names, or ""."""
    if session := re.match(r"/session/([^/]+)", path):
        return session[1]
    if path.startswith("/proxy/dicom/"):
        in_query = {kind: query[name] for name, kind in _UID_PARAMETERS.items() if query.get(name)}
        uids = dict(_UIDS.findall(path)) | in_query
        return uids.get("series") or uids.get("studies") or ""
    return query.get("session_id") or query.get("image") or query.get("label") or query.get("id") or ""


def _is_audited(context: RequestContext, status: int, has_token: bool) -> bool:
    """Return whether a request gets a line in the audit file.

    Among requests without a token, only those to sign in or out get one; ``Audit`` counts them.
    """
    if context.principal is None and (context.policy is None or context.policy.role is not None):
        return has_token and status in (401, 403, 429)
    return status == 403 or (context.policy is not None and context.policy.audited)


def address_of(scope: Mapping[str, Any]) -> str:
    """Return the address of the client. Uvicorn reads it from the headers of a proxy on this machine.

    Args:
        scope: ASGI scope of the request.
    """
    client = scope.get("client")
    return str(client[0]) if client else ""


def _local_user(scope: Scope, headers: Mapping[str, str]) -> Principal:
    """Return the local user if no login is needed.

    Requests from other machines are refused, also through a proxy, and so are requests for another host name: a web
    page may let its own name resolve to this machine (DNS rebinding).

    Raises:
        HTTPException: 403.
    """
    host = re.sub(r":\d+$", "", headers.get("host", ""))
    server = scope.get("server")
    is_local = all(_is_loopback(address) for address in (address_of(scope), str(server[0]) if server else "", host))
    if not is_local or "x-forwarded-for" in headers or "forwarded" in headers:
        raise HTTPException(
            403,
            "This server needs no login and so serves its own machine only, at http://127.0.0.1 or "
            "http://localhost. To serve others, its operator adds users (baps users add) or an OpenID provider.",
        )
    return LOCAL_MACHINE


def _is_loopback(address: str) -> bool:
    try:
        return address == "localhost" or ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return False


def _public_message(error: BapsError) -> str:
    """Return the message for a user about an error of the users' file or the provider, without paths."""
    return str(error) if not isinstance(error, InputError) else "The server cannot read its users. Tell its operator."
