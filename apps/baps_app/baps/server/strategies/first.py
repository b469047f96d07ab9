"""Strategy that selects the first image without a label."""

from __future__ import annotations

from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from baps.server.datastores.candidates import Candidates, find_candidates
from baps.server.strategies.preview import Offer, Preview
from baps.server.strategies.usable import first_usable


class First(Strategy):
    """Selects the first name; in a PACS, the first name on the first page that has an unlabelled image."""

    def __init__(self) -> None:
        super().__init__("The first image without a label")

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Select an image.

        Args:
            request: Body of the request; it has no options.
            datastore: Datastore of the server.

        Returns:
            The image's ``id``, and a ``reason`` if only some images were considered; None if no image is left.

        Raises:
            InputError: If none of the images that were tried can be used.
            BapsError: If the PACS does not respond, or the disk is full.
        """
        candidates = find_candidates(datastore, random_start=False)
        image = first_usable(sorted(candidates.images), datastore)
        if image is None:
            return None
        return {"id": image, **({"reason": candidates.note} if candidates.note else {})}

    def preview(self, candidates: Candidates, datastore: Datastore, count: int) -> Preview:
        """Return what it would offer, see ``Previewable``."""
        offers = (Offer(image, f"number {n} by name") for n, image in enumerate(sorted(candidates.images)[:count], 1))
        return Preview("The first image by name that has no label and can be read.", tuple(offers))
