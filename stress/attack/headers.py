"""Check that all answers carry the headers that protect a browser.

Every route is requested without a token, with a wrong token, as an annotator and as an admin. Pages, files, refusals
and unknown paths are among the requests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests

from baps.site.roles import Role
from baps.site.users import Users
from stress.served_site import CASES, running_site

_PATH_VALUES = {
    "model": "baps", "strategy": "first", "session_id": "none", "job": "none", "path": "studies", "tag": "final",
}  # fmt: skip
"""Values of path parameters."""

_PATH_PARAMETER = re.compile(r"{(\w+)}")

_OTHER_REQUESTS = (
    "GET /nothing", "GET /ohif/", "GET /ohif/app-config.js", "GET /static/logo.svg", "POST /login",
    "GET /login?next=//evil.example",
    "GET /logout", "POST /logout", "GET /ohif/../../etc/passwd", "DELETE /model/x", "TRACE /info/", "OPTIONS /info/",
    "GET /datastore/image?image=ct_01", "GET /datastore/label?label=ct_01&tag=final", "GET /datastore/image?image=../x",
    "GET /proxy/dicom/studies", "POST /proxy/dicom/studies", "PUT /session/", "GET /login/openid/return?state=x",
)  # fmt: skip
"""Requests in addition to those of the OpenAPI description."""

_CACHEABLE = re.compile(r"/(ohif|static)/.+")
"""Paths without patient data, which a browser may cache."""


def missing_headers(path: str, headers: Mapping[str, str]) -> list[str]:
    """Return the names of the headers of an answer that are missing or wrong."""
    parts = [part.strip().partition(" ") for part in headers.get("Content-Security-Policy", "").split(";")]
    policy = {name: value for name, _, value in parts}
    wrong = []
    if not policy.get("default-src", "").split() or {"*", "https:", "http:"} & set(" ".join(policy.values()).split()):
        wrong.append("Content-Security-Policy")
    if policy.get("frame-ancestors") not in ("'none'", "'self'"):
        wrong.append("frame-ancestors")
    if headers.get("X-Content-Type-Options") != "nosniff":
        wrong.append("X-Content-Type-Options")
    if headers.get("Referrer-Policy") not in ("no-referrer", "same-origin", "strict-origin"):
        wrong.append("Referrer-Policy")
    if not _CACHEABLE.match(path) and "no-store" not in headers.get("Cache-Control", ""):
        wrong.append("Cache-Control")
    return wrong


def check_headers(folder: Path) -> dict[str, Any]:
    """Start a server and request every route.

    Returns:
        ``headers_checked`` (number of answers), ``headers_missing`` (answers that lack a header), and ``wrong``:
        descriptions of the first of these.
    """
    wrong, checked = [], 0
    with running_site(folder, CASES[:1]) as site:
        annotator = Users(folder / "users.json").add("annotator", Role.ANNOTATOR)
        paths = site.session().get(f"{site.address}/openapi.json", timeout=60).json()["paths"]
        requests_described = [
            f"{method.upper()} {_PATH_PARAMETER.sub(lambda part: _PATH_VALUES.get(part[1], 'x'), path)}"
            for path, methods in paths.items()
            for method in methods
        ]
        for token in ("", "wrong", annotator, site.token):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            for request in (*requests_described, *_OTHER_REQUESTS):
                method, _, path = request.partition(" ")
                reply = requests.request(
                    method, site.address + path, headers=headers, timeout=120, allow_redirects=False
                )
                checked += 1
                if wrong_headers := missing_headers(path, reply.headers):
                    wrong.append(f"{request}, {reply.status_code}: {', '.join(wrong_headers)}")
    return {"headers_checked": checked, "headers_missing": len(wrong), "wrong": wrong[:50]}
