"""The strategy of Next Sample that offers the first image without a label."""

from __future__ import annotations

from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from baps.server.datastores.candidates import candidates
from baps.server.strategies.usable import first_usable


class First(Strategy):
    """By name; of an archive, by name in the first page that has one: a PACS lists series in an order of its own."""

    def __init__(self) -> None:
        super().__init__("The first image without a label")

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Return the image's ``id``, and a ``reason`` where a part of them was looked at; None if none is left."""
        found = candidates(datastore, at_random=False)
        image = first_usable(sorted(found.images), datastore)
        if image is None:
            return None
        return {"id": image, **({"reason": found.note} if found.note else {})}
