"""Render pages in the common layout: navigation by role, files of styles and scripts, security headers, errors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import FileResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from baps.errors import NotFoundError
from baps.evaluation.serving import format_gain
from baps.server.auth.authenticator import trusts_cookies
from baps.server.middleware.root_path import path_below, root_path
from baps.server.request_context import Principal, context_of
from baps.site.roles import Role

_SERVER = Path(__file__).parents[1]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
"""Content-Security-Policy of the pages: nothing inline, nothing from other hosts."""

_HTMX_CONFIG = json.dumps(
    {
        "allowEval": False,
        "allowScriptTags": False,
        "includeIndicatorStyles": False,  # They would be inline.
        "selfRequestsOnly": True,
        "historyEnabled": False,  # The browser's storage must keep no page.
    }
)

_FILES = {
    "site.css": "text/css",
    "site.js": "text/javascript",
    "htmx-2.0.11.min.js": "text/javascript",
    "htmx-sse-2.2.4.min.js": "text/javascript",
    "htmx-LICENSE.txt": "text/plain",
}
"""Files of the pages, and their media types."""


@dataclass(frozen=True)
class Tab:
    """An entry of the navigation.

    Attributes:
        path: Path of the page, below the root path.
        title: Text of the link.
        role: Role that sees the link.
    """

    path: str
    title: str
    role: Role


TABS = (
    Tab("/", "Overview", Role.ANNOTATOR),
    Tab("/web/train", "Train", Role.ANNOTATOR),
    Tab("/web/adapters", "Adapters", Role.ANNOTATOR),
    Tab("/web/labels", "Labels", Role.ANNOTATOR),
    Tab("/web/people", "People", Role.ADMIN),
)
"""The navigation. Pages below a path of it mark it as the current one."""


def render(
    request: Request,
    template: str,
    status: int = 200,
    headers: Mapping[str, str] = MappingProxyType({}),
    **values: Any,
) -> Response:
    """Render a page, or a part of one.

    Args:
        request: The request.
        template: File in the folder ``templates``.
        status: HTTP status.
        headers: Further headers.
        values: Values for the template. Text is escaped.

    Returns:
        The page.
    """
    content = render_part(request, template, **values)
    return Response(content, status, {"Content-Security-Policy": POLICY, **headers}, "text/html")


def render_part(request: Request, template: str, **values: Any) -> str:
    """Render a page, or a part of one, to text.

    Args:
        request: The request.
        template: File in the folder ``templates``.
        values: Values for the template. Text is escaped.

    Returns:
        The HTML.
    """
    principal, path = principal_of(request), path_below(request.scope)
    html: str = (
        _templates()
        .get_template(template)
        .render(
            root=root_path(request.scope),
            tabs=[tab for tab in TABS if principal.role.may(tab.role)],
            current=next((tab.path for tab in reversed(TABS) if path.startswith(tab.path)), ""),
            principal=principal,
            trains=principal.role.may(Role.TRAINER),
            htmx_config=_HTMX_CONFIG,
            **values,
        )
    )
    return html


def error_page(request: Request, status: int, sentence: str) -> Response:
    """Show a sentence about a request that failed.

    Args:
        request: The request.
        status: HTTP status.
        sentence: The sentence.

    Returns:
        The page.
    """
    return render(request, "web/error.html", status, sentence=sentence)


def is_page(request: Request) -> bool:
    """Return whether a person sees the response to a request as a page.

    Args:
        request: The request.
    """
    path = path_below(request.scope)
    return (path == "/" or path.startswith("/web/")) and "text/html" in request.headers.get("accept", "")


def principal_of(request: Request) -> Principal:
    """Return the user of a page. The guard has authenticated every request for one.

    Args:
        request: The request.
    """
    principal = context_of(request).principal
    assert principal is not None
    return principal


def require_own_page(request: Request) -> None:
    """Refuse a form that no page of this server has sent.

    The guard has refused pages of other origins already, unless the operator allows them (``cors_origins``). They may
    send requests of viewers, but must not press the buttons of these pages.

    Args:
        request: The request.

    Raises:
        HTTPException: 403.
    """
    # Without users, no token is checked: a page can send any.
    has_token = "authorization" in request.headers and principal_of(request).by != "machine"
    if not has_token and not trusts_cookies(request.method, request.headers):
        raise HTTPException(403, "This form was not sent by a page of this server. Open the page and try again.")


def redirect(request: Request, path: str) -> Response:
    """Redirect the browser to a page after a form.

    Args:
        request: The request.
        path: Path below the root path.

    Returns:
        The response.
    """
    return RedirectResponse(f"{root_path(request.scope)}{path}", 303)


def static_file(name: str) -> Response:
    """Send a file of the pages: styles and scripts.

    Raises:
        NotFoundError: If there is no such file.
    """
    if name not in _FILES:
        raise NotFoundError("There is no such file.")
    # Pages name the version of each file, see ``_address_of``. The files hold nothing about the site.
    headers = {"Cache-Control": "private, max-age=604800"}
    return FileResponse(_SERVER / "static" / name, headers=headers, media_type=_FILES[name])


def static_text(name: str) -> Markup:
    """Return the content of a file of the pages, to include it in a page.

    Args:
        name: Name of the file.
    """
    assert name in _FILES
    return Markup((_SERVER / "static" / name).read_text())  # noqa: S704 (a file of this package)


ROUTES: list[tuple[str, str, Callable[..., Any]]] = [("GET", "/static/{name}", static_file)]


@cache
def _templates() -> Environment:
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(_SERVER / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        gain=format_gain, dice=format_dice, when=format_time, duration=format_duration, plural=plural
    )
    environment.globals["static"] = _address_of
    environment.globals["icon"] = lambda name: Markup(_ICONS[name])  # noqa: S704 (a constant)
    return environment


@cache
def _address_of(name: str) -> str:
    """Return the address of a file below the root path. It changes with the content."""
    version = hashlib.sha256((_SERVER / "static" / name).read_bytes()).hexdigest()[:10]
    return f"/static/{name}?v={version}"


def _icon(path: str) -> str:
    return f'<svg class="icon" viewBox="0 0 16 16" aria-hidden="true"><path d="{path}"/></svg>'


_ICONS = {
    "ok": _icon("M3 8.5l3.2 3.2L13 5"),
    "warning": _icon("M8 2l6.5 12h-13zM8 6.5v3.5M8 12v.2"),
    "failed": _icon("M4 4l8 8M12 4l-8 8"),
}


def format_dice(dice: float | None) -> str:
    """Format a Dice for people.

    Args:
        dice: The Dice, 0 to 1, or None.

    Returns:
        Three decimals, as in ``.874``, or a dash.
    """
    return "–" if dice is None else f"{dice:.3f}".removeprefix("0")


def format_time(time: datetime | None) -> str:
    """Format a time for people, in the time zone of the server.

    Args:
        time: The time, or None.

    Returns:
        Date, hours and minutes, or a dash.
    """
    return "–" if time is None else time.astimezone().strftime("%Y-%m-%d %H:%M")


def format_duration(seconds: float | None) -> str:
    """Format a duration for people.

    Args:
        seconds: The duration, or None if it is unknown.

    Returns:
        As in ``40 s``, ``12 min`` or ``2 h 05 min``.
    """
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def plural(count: int, singular: str, several: str = "") -> str:
    """Put a number before a noun.

    Args:
        count: The number.
        singular: The noun for one.
        several: The noun for other numbers; "" adds an s.

    Returns:
        As in ``1 patient`` or ``3 patients``.
    """
    return f"{count:,} {singular if count == 1 else several or f'{singular}s'}"
