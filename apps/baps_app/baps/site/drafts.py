"""Open the drafts of a site."""

from __future__ import annotations

from baps.annotations.drafts import DraftStore
from baps.site.settings import Settings


def open_drafts(settings: Settings) -> DraftStore:
    """Open the drafts of a site, which are beside its adapters.

    Args:
        settings: Settings of the site.

    Returns:
        The drafts.
    """
    return DraftStore(
        settings.adapters / "drafts", settings.nninteractive_drafts, settings.nninteractive_drafts_mb << 20
    )
