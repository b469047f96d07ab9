"""Routes for the simple pages of this server: the list of requests, and a page in place of OHIF without a PACS.

They use no scripts, load nothing from other hosts, and show nothing about patients.
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
from monailabel.endpoints import ohif as monailabel_ohif

from baps.server.access_policy import find_policy
from baps.server.middleware.root_path import external_url, root_path
from baps.site.server_command import is_pacs

_TEMPLATES = Environment(autoescape=True, loader=FileSystemLoader(Path(__file__).parents[1] / "templates"))


@dataclass(frozen=True)
class Operation:
    """An entry of the list of requests.

    Attributes:
        method: HTTP method.
        path: Path, with names in braces for values.
        summary: What the request does.
        parameters: Names of query parameters.
        role: Role that is needed, or "".
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
    """Render a page that loads nothing from other hosts and that no other page can show in a frame.

    Args:
        request: The request.
        template: File in the folder ``templates``.
        status: HTTP status.
        headers: Further headers.
        values: Values for the template.

    Returns:
        The page.
    """
    nonce = secrets.token_urlsafe(16)
    content = _TEMPLATES.get_template(template).render(nonce=nonce, root=root_path(request.scope), **values)
    policy = f"default-src 'none'; style-src 'nonce-{nonce}'; img-src 'self'; form-action 'self'; "
    policy += "frame-ancestors 'none'; base-uri 'none'"
    return Response(content, status, {"Content-Security-Policy": policy, **headers}, "text/html")


def favicon() -> FileResponse:
    """Send the icon that browsers show beside the title of a page."""
    return FileResponse(Path(monailabel_ohif.__file__).parent / "static" / "favicon.ico", media_type="image/x-icon")


def has_pacs() -> bool:
    """Return whether the images are in a PACS, so that OHIF can show them."""
    return is_pacs(settings.MONAI_LABEL_STUDIES)


def no_ohif_page(request: Request) -> Response:
    """Show that OHIF needs a PACS."""
    return page(request, "no-ohif.html", address=external_url(request))


def docs_page(request: Request) -> Response:
    """List the requests that are served; MONAI Label's parameter ``token`` has no effect here."""
    described = request.app.openapi()["paths"]
    operations = [
        Operation(
            method.upper(),
            path,
            about.get("summary", ""),
            tuple(
                parameter["name"]
                for parameter in about.get("parameters", [])
                if parameter["in"] == "query" and parameter["name"] != "token"
            ),
            policy.role.value if policy.role else "",
        )
        for path, methods in sorted(described.items())
        for method, about in methods.items()
        if (policy := find_policy(method.upper(), re.sub(r"{\w+}", "x", path)))
    ]
    return page(request, "docs.html", address=external_url(request), operations=operations)
