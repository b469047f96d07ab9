"""Do all answers carry the headers that protect a browser? Every route is asked, as nobody, an annotator and an admin.

Pages, files, refusals and paths that are not served are among them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests

from baps.site.roles import Role
from baps.site.users import Users
from stress.served_site import CASES, site

_NAMES = {"model": "baps", "strategy": "first", "session_id": "none", "job": "none", "path": "studies", "tag": "final"}
"""What stands for a part of a path."""

_PART = re.compile(r"{(\w+)}")

_MORE = (
    "GET /nothing", "GET /ohif/", "GET /ohif/app-config.js", "GET /static/logo.svg", "POST /login",
    "GET /login?next=//evil.example",
    "GET /logout", "POST /logout", "GET /ohif/../../etc/passwd", "DELETE /model/x", "TRACE /info/", "OPTIONS /info/",
    "GET /datastore/image?image=ct_01", "GET /datastore/label?label=ct_01&tag=final", "GET /datastore/image?image=../x",
    "GET /proxy/dicom/studies", "POST /proxy/dicom/studies", "PUT /session/", "GET /login/openid/return?state=x",
)  # fmt: skip
"""Requests beside those of the OpenAPI description."""

_KEPT = re.compile(r"/(ohif|static)/.+")
"""What holds nothing of patients and may be kept by a browser."""


def missing_headers(path: str, headers: Mapping[str, str]) -> list[str]:
    """Return what is wrong with the headers of an answer."""
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
    if not _KEPT.match(path) and "no-store" not in headers.get("Cache-Control", ""):
        wrong.append("Cache-Control")
    return wrong


def check_headers(folder: Path) -> dict[str, Any]:
    """Start a server and ask every route.

    Returns:
        ``headers_checked`` answers, ``headers_missing`` (answers with a header missing), and ``wrong``: the first ones.
    """
    wrong, checked = [], 0
    with site(folder, CASES[:1]) as place:
        annotator = Users(folder / "users.json").add("annotator", Role.ANNOTATOR)
        described = place.session().get(f"{place.address}/openapi.json", timeout=60).json()["paths"]
        wanted = [
            f"{method.upper()} {_PART.sub(lambda part: _NAMES.get(part[1], 'x'), path)}"
            for path, methods in described.items()
            for method in methods
        ]
        for token in ("", "wrong", annotator, place.token):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            for request in (*wanted, *_MORE):
                method, _, path = request.partition(" ")
                reply = requests.request(
                    method, place.address + path, headers=headers, timeout=120, allow_redirects=False
                )
                checked += 1
                if found := missing_headers(path, reply.headers):
                    wrong.append(f"{request}, {reply.status_code}: {', '.join(found)}")
    return {"headers_checked": checked, "headers_missing": len(wrong), "wrong": wrong[:50]}
