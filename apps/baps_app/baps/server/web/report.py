"""Write the report of one adapter: a single HTML file without names of patients or images, for the quality file."""

from __future__ import annotations

import re
from datetime import datetime, timezone

from fastapi import Request
from fastapi.responses import Response

from baps.server.web.adapter_table import AdapterVersion, OrganAdapters
from baps.server.web.layout import render, static_text
from baps.server.web.plots import plot_evidence

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""Content-Security-Policy of the report, which has its styles in it. It runs no scripts and loads nothing."""


def write_report(request: Request, adapters: OrganAdapters, version: AdapterVersion, model_title: str) -> Response:
    """Write the report of a version as a file to save.

    Args:
        request: The request.
        adapters: The adapters of the organ.
        version: The version.
        model_title: What the kind of adapter is called.

    Returns:
        The file.
    """
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", f"{version.organ or 'any-organ'}-{version.version}").strip("-")
    headers = {
        "Content-Security-Policy": _POLICY,
        "Content-Disposition": f'attachment; filename="adapter-{name}.html"',
        "Cache-Control": "no-store",
    }
    return render(
        request,
        "web/report.html",
        headers=headers,
        adapters=adapters,
        now=version,
        model_title=model_title,
        style=static_text("site.css"),
        made=datetime.now(timezone.utc),
        plot=plot_evidence(version.patients, 640, 240),
        history=[entry for entry in adapters.history if entry.get("version") == version.version],
    )
