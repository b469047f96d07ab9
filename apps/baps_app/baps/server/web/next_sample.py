"""Ask each strategy of Next Sample what it would offer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from baps.server.datastores.candidates import find_candidates
from baps.server.strategies.preview import Preview

if TYPE_CHECKING:
    from baps.server.app import BapsApp

_COUNT = 12
"""Number of images that are shown of each strategy."""


def preview_strategies(app: BapsApp) -> dict[str, Preview]:
    """Return what each strategy would offer now. This may query a PACS.

    Args:
        app: The app.

    Returns:
        The orders, by the name of the strategy.

    Raises:
        BapsError: If the PACS does not respond.
    """
    datastore = app.datastore()
    candidates = find_candidates(datastore, random_start=False, min_count=_COUNT)
    previews = {}
    for name, strategy in app._strategies.items():
        preview = getattr(strategy, "preview", None)
        if preview is not None:
            result: Preview = preview(candidates, datastore, _COUNT)
            note = f" {candidates.note}" if candidates.note else ""
            previews[name] = Preview(f"{result.rule}{note}", result.offers)
    return previews
