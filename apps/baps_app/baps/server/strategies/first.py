"""Strategy that selects the first image without a label."""

from __future__ import annotations

from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from baps.server.datastores.candidates import candidates
from baps.server.strategies.usable import first_usable


class First(Strategy):
    """Selects by name; in a PACS, by name within the first page that has an unlabelled image."""

    def __init__(self) -> None:
        super().__init__("The first image without a label")

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Return the image's ``id``, and a ``reason`` if only some images were considered, or None."""
        found = candidates(datastore, at_random=False)
        image = first_usable(sorted(found.images), datastore)
        if image is None:
            return None
        return {"id": image, **({"reason": found.note} if found.note else {})}
