"""List the routes of all pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from baps.server.web import adapters, audit, drafts, labels, layout, overview, people, train

ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    *overview.ROUTES,
    *train.ROUTES,
    *adapters.ROUTES,
    *labels.ROUTES,
    *drafts.ROUTES,
    *people.ROUTES,
    *audit.ROUTES,
    *layout.ROUTES,
]
"""Methods, path and function of each route."""
