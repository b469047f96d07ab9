"""What Next Sample would offer, and why, for people who want to know before they ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from monailabel.interfaces.datastore import Datastore

from baps.server.datastores.candidates import Candidates
from baps.server.datastores.index import AtomicIndex


@dataclass(frozen=True)
class Offer:
    """An image that Next Sample may offer.

    Attributes:
        image: Name of the image.
        reason: Why it has this place in the order.
    """

    image: str
    reason: str


@dataclass(frozen=True)
class Preview:
    """The order of a strategy.

    Attributes:
        rule: How it selects, as a sentence.
        offers: The images that come first.
    """

    rule: str
    offers: tuple[Offer, ...]


class Previewable(Protocol):
    """A strategy that can say what it would offer."""

    def preview(self, candidates: Candidates, datastore: Datastore, count: int) -> Preview:
        """Return what it would offer. Nothing is selected, fetched or computed.

        Args:
            candidates: Images without a label.
            datastore: Datastore of the server.
            count: Maximum number of images.
        """
        ...


def last_selected(datastore: Datastore, images: Sequence[str], strategy: str) -> dict[str, int]:
    """Return when a strategy last selected each image, from the index in memory.

    Args:
        datastore: Datastore of the server.
        images: Names of images.
        strategy: Name of the strategy.

    Returns:
        Times in seconds since 1970; images that were never selected are missing.
    """
    if not isinstance(datastore, AtomicIndex):
        return {}
    listed, times = datastore._datastore.objects, dict[str, int]()
    for image in images:
        entry = listed.get(image)
        selected: Any = entry.image.info.get("strategy", {}).get(strategy, {}) if entry else {}
        if isinstance(selected, dict) and isinstance(selected.get("ts"), int):
            times[image] = selected["ts"]
    return times
