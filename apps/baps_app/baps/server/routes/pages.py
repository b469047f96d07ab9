"""The pages of this server: the start page, the list of requests, and how any page is made.

They need no script, load nothing from another host, and show nothing of patients.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fastapi import Request
from fastapi.responses import FileResponse, Response
from jinja2 import Environment, FileSystemLoader
from monailabel.config import settings
from monailabel.endpoints import ohif as host_ohif

from baps.server.access_policy import find_policy
from baps.server.middleware.root_path import own_address, root_path
from baps.server.request_context import asked
from baps.site.server_command import is_pacs

_TEMPLATES = Environment(autoescape=True, loader=FileSystemLoader(Path(__file__).parents[1] / "templates"))


@dataclass(frozen=True)
class Operation:
    """A kind of request, for the list.

    Attributes:
        method, path: of HTTP; names in braces stand for values.
        summary: what it does.
        parameters: names of those in the query.
        role: that is needed, or "".
    """

    method: str
    path: str
    summary: str
    parameters: tuple[str, ...]
    role: str


def page(
    request: Request,
    template: str,
    status: int = 200,
    headers: Mapping[str, str] = MappingProxyType({}),
    **values: Any,
) -> Response:
    """A page made from a template of this folder, which loads nothing and which no other page may frame."""
    nonce = secrets.token_urlsafe(16)
    content = _TEMPLATES.get_template(template).render(nonce=nonce, root=root_path(request.scope), **values)
    policy = f"default-src 'none'; style-src 'nonce-{nonce}'; img-src 'self'; form-action 'self'; "
    policy += "frame-ancestors 'none'; base-uri 'none'"
    return Response(content, status, {"Content-Security-Policy": policy, **headers}, "text/html")


def start_page(request: Request) -> Response:
    """What this server is, how the viewers connect to it, and who is signed in."""
    asker = asked(request).asker
    return page(request, "start.html", address=own_address(request), pacs=has_pacs(), asker=asker)


def favicon() -> FileResponse:
    """Send the icon that browsers show beside the title of a page."""
    return FileResponse(Path(host_ohif.__file__).parent / "static" / "favicon.ico", media_type="image/x-icon")


def has_pacs() -> bool:
    """Return whether the images lie in a PACS, so that OHIF shows them."""
    return is_pacs(settings.MONAI_LABEL_STUDIES)


def no_ohif_page(request: Request) -> Response:
    """What is shown in place of OHIF where there is no PACS."""
    return page(request, "no-ohif.html", address=own_address(request))


def docs_page(request: Request) -> Response:
    """The requests that are answered, from the OpenAPI description; MONAI Label's ``token`` counts for nothing here."""
    described = request.app.openapi()["paths"]
    found = [
        Operation(
            method.upper(),
            path,
            about.get("summary", ""),
            tuple(
                one["name"] for one in about.get("parameters", []) if one["in"] == "query" and one["name"] != "token"
            ),
            kind.role.value if kind.role else "",
        )
        for path, methods in sorted(described.items())
        for method, about in methods.items()
        if (kind := find_policy(method.upper(), re.sub(r"{\w+}", "x", path)))
    ]
    return page(request, "docs.html", address=own_address(request), operations=found)
