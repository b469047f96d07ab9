"""Strategy that selects a random image, preferring images that were not selected for long.

In a PACS with more series than one page, it selects a random place and then one of the images there; the response says
so.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.tasks.activelearning.random import Random

from baps.server.datastores.candidates import candidates
from baps.server.strategies.usable import first_usable


class RandomStrategy(Random):
    """MONAI Label's strategy, which fails if all remaining images were selected within the last second."""

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Return the image's ``id``, its ``weight``, the seconds since it was offered, and a ``reason`` where a part of
        the images was looked at; None if none is left."""
        found, now = candidates(datastore, at_random=True), int(time.time())
        images = found.images
        offered = [datastore.get_image_info(image).get("strategy", {}).get(request["strategy"], {}) for image in images]
        weights = dict(zip(images, (max(1, now - one.get("ts", 0)) for one in offered), strict=True))
        chosen = first_usable(_drawn(images, weights), datastore)
        if chosen is None:
            return None
        return {"id": chosen, "weight": weights[chosen], **({"reason": found.note} if found.note else {})}


def _drawn(images: Sequence[str], weights: dict[str, int]) -> Iterator[str]:
    """Yield the images in random order."""
    left = list(images)
    while left:
        (image,) = random.choices(left, [weights[one] for one in left])  # noqa: S311 (nothing is kept secret by it)
        left.remove(image)
        yield image
