"""What is refused before anything else sees it, and what is noted of the rest."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

from anyio import CapacityLimiter, to_thread
from fastapi import HTTPException
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baps.annotations.history import check_tag
from baps.errors import BapsError, InputError
from baps.server.access_policy import find_policy
from baps.server.auth.authenticator import Authenticator, cookie_of, cookies_count, is_foreign, is_framed, is_link
from baps.server.auth.request_audit import Audit
from baps.server.middleware.bodies import most_bytes, too_large
from baps.server.middleware.root_path import path_below, root_path
from baps.server.request_context import LOCAL_MACHINE, Principal, RequestContext
from baps.server.request_names import checked_name

_NAMED = ("image", "id", "label", "tag", "session_id")
_PAGE = re.compile(r"/|/docs|/ohif(/.*)?")
"""What a person opens in a browser, who is sent to the login page."""

_LINKED = re.compile(rf"{_PAGE.pattern}|/login(/openid/return)?")
"""Pages that a link on a page of another origin may lead to."""

_UIDS = re.compile(r"/(studies|series)/([\d.]+)")
_IN_QUERY = {
    "StudyInstanceUID": "studies",
    "0020000D": "studies",
    "SeriesInstanceUID": "series",
    "0020000E": "series",
}
"""What a search in a PACS may name, by keyword or tag."""

_ASKERS = CapacityLimiter(4)
"""Threads that find out who asks; those of the pool are for answers."""

_PROVIDER_ASKERS = CapacityLimiter(4)
"""The same for tokens of an OpenID provider, which may not answer: others need not wait for that."""


@dataclass(frozen=True)
class Rules:
    """What the guard goes by.

    Attributes:
        signing_in: who is let in.
        audit: where it is noted what they do.
        origins: others whose pages may ask; ``*`` for all.
        most_bytes: of a request that brings images.
    """

    signing_in: Authenticator
    audit: Audit
    origins: Collection[str]
    most_bytes: int


class Guard:
    """Lets in who may come in, with what is served, and notes what they do.

    Args:
        app: behind it.
        rules: by which.
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
        asked = scope["baps.asked"] = RequestContext(
            find_policy(scope["method"], path_below(scope), scope["query_string"].decode("latin-1"))
        )
        status = 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = await self._refusal(scope, asked)
            if refusal:
                await refusal(scope, receive, counted)
            else:
                await self.app(scope, receive, counted)
        finally:
            if _is_noted(asked, status, "authorization" in _headers(scope)):
                self.rules.audit.note(asked, status)

    async def _refusal(self, scope: Scope, asked: RequestContext) -> Response | None:
        headers = _headers(scope)
        try:
            self._check_origin(scope, headers)
            if asked.kind is None or asked.kind.role is not None:
                limiter = _PROVIDER_ASKERS if headers.get("authorization", "").count(".") == 2 else _ASKERS
                asked.asker = await to_thread.run_sync(self._asker, scope, headers, limiter=limiter)
            asked.image = self._check_path(scope)
            self._check_role(scope, asked)
            self._check_length(headers, asked)
        except HTTPException as refusal:
            navigates = scope["method"] == "GET" and "text/html" in headers.get("accept", "")
            if refusal.status_code == 401 and navigates and _PAGE.fullmatch(path_below(scope)):
                query = scope["query_string"].decode("latin-1")
                wanted = scope["path"] + (f"?{query}" if query else "")
                return RedirectResponse(f"{root_path(scope)}/login?next={quote(wanted, safe='')}", 303)
            return JSONResponse({"detail": refusal.detail}, refusal.status_code, refusal.headers)
        except InputError as error:
            return JSONResponse({"detail": str(error)}, 400)
        return None

    def _check_origin(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Refuse what pages of other origins have a browser ask, but for links to the pages of this server.

        Browsers say so of what they ask of https and of their own machine (Sec-Fetch-Site); programs say nothing.

        Raises:
            HTTPException: 403.
        """
        if is_framed(headers):
            raise HTTPException(403, "The pages of this server cannot be shown within those of others.")
        origins = self.rules.origins
        if "*" in origins or headers.get("origin") in origins:
            return
        link = scope["method"] in ("GET", "HEAD") and is_link(headers) and _LINKED.fullmatch(path_below(scope))
        if is_foreign(headers) and not link:
            raise HTTPException(403, "Requests from pages of other origins are refused.")

    def _asker(self, scope: Scope, headers: Mapping[str, str]) -> Principal:
        """Who asks.

        Raises:
            HTTPException: 401 if that is not known, 503 if it cannot be found out, and as ``Authenticator``.
        """
        signing_in = self.rules.signing_in
        if not signing_in.needed:
            return _at_the_machine(scope, headers)
        kind, _, token = headers.get("authorization", "").partition(" ")
        try:
            if kind.lower() == "bearer":
                return signing_in.with_token(token.strip(), address_of(scope))
            if not kind and cookies_count(scope["method"], headers):
                asker = signing_in.with_cookies(cookie_of(scope).values(headers.get("cookie", "")))
                if asker:
                    return asker
        except BapsError as error:
            raise HTTPException(503, _operators(error)) from error
        raise HTTPException(
            401,
            f"Sign in first: with a token (Authorization: Bearer), or at {root_path(scope)}/login.",
            {"WWW-Authenticate": "Bearer"},
        )

    @staticmethod
    def _check_path(scope: Scope) -> str:
        """Refuse names and paths that lead elsewhere; the image that a request names, or ""."""
        path, raw = path_below(scope), scope.get("raw_path", scope["path"].encode()).decode("latin-1")
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        decoded = unquote(unquote(raw))
        if ".." in decoded.split("/") or "\\" in decoded or "%2f" in raw.lower():
            raise HTTPException(400, "The path of the request leads outside what is served.")
        if path.startswith("/session") and query.get("uncompress", "").lower() not in ("", "false", "0"):
            raise HTTPException(400, "Archives are not unpacked; send one image file.")
        for name in _NAMED:
            if query.get(name):
                checked_name(query[name], name)
        if query.get("tag"):
            check_tag(query["tag"])
        return _image_named(path, query)

    @staticmethod
    def _check_role(scope: Scope, asked: RequestContext) -> None:
        if asked.kind is None:
            raise HTTPException(
                403, f"{scope['method']} {path_below(scope)} is not served here; no viewer asks for it."
            )
        needed, asker = asked.kind.role, asked.asker
        if needed is not None and asker is not None and not asker.role.may(needed):
            raise HTTPException(
                403,
                f"To {asked.kind.meaning} you need the role {needed.value}; yours is {asker.role.value}. Ask the "
                "operator of the server.",
            )

    def _check_length(self, headers: Mapping[str, str], asked: RequestContext) -> None:
        most = most_bytes(asked, self.rules.most_bytes)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > most:
            raise too_large(most)


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _image_named(path: str, query: Mapping[str, str]) -> str:
    """The image that a request names: an image of the datastore, a session, or a series or study of the PACS; or ""."""
    if session := re.match(r"/session/([^/]+)", path):
        return session[1]
    if path.startswith("/proxy/dicom/"):
        uids = dict(_UIDS.findall(path)) | {kind: query[name] for name, kind in _IN_QUERY.items() if query.get(name)}
        return uids.get("series") or uids.get("studies") or ""
    return query.get("session_id") or query.get("image") or query.get("label") or query.get("id") or ""


def _is_noted(asked: RequestContext, status: int, with_token: bool) -> bool:
    """Whether a request is noted: those that read, change or answer something, and tokens that are refused.

    Of requests without a token only those to sign in or out are; ``Audit`` counts them.
    """
    if asked.asker is None and (asked.kind is None or asked.kind.role is not None):
        return with_token and status in (401, 403, 429)
    return status == 403 or (asked.kind is not None and asked.kind.noted)


def address_of(scope: Mapping[str, Any]) -> str:
    """The address that a request comes from; a proxy on this machine says it for others (uvicorn reads that)."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def _at_the_machine(scope: Scope, headers: Mapping[str, str]) -> Principal:
    """Whoever sits at this machine, where nobody has to sign in.

    A request that comes from elsewhere is refused, also through a proxy, and so is one for another name: a page of the
    web may have its own name stand for this machine.

    Raises:
        HTTPException: 403.
    """
    host = re.sub(r":\d+$", "", headers.get("host", ""))
    here = scope.get("server")
    near = all(_is_near(address) for address in (address_of(scope), str(here[0]) if here else "", host))
    if not near or "x-forwarded-for" in headers or "forwarded" in headers:
        raise HTTPException(
            403,
            "This server lets everybody in and so answers its own machine alone, at http://127.0.0.1 or "
            "http://localhost. To let others in, its operator names users (baps users add) or an OpenID provider.",
        )
    return LOCAL_MACHINE


def _is_near(address: str) -> bool:
    try:
        return address == "localhost" or ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return False


def _operators(error: BapsError) -> str:
    """What a user is told of a fault of the users' file or the provider: no path of this machine."""
    return (
        str(error) if not isinstance(error, InputError) else "The server cannot read who may use it. Tell its operator."
    )
