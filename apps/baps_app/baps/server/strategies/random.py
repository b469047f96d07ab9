"""Strategy that selects a random image, and prefers images that were not selected for a long time.

In a PACS with more series than one page, it selects a random page and then one of its images; the response says so.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.tasks.activelearning.random import Random

from baps.server.datastores.candidates import find_candidates
from baps.server.strategies.usable import first_usable


class RandomStrategy(Random):
    """MONAI Label's strategy with a fix: that one fails if all images were selected within the last second."""

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Select an image.

        Args:
            request: Body of the request, with the name of the ``strategy``.
            datastore: Datastore of the server.

        Returns:
            The image's ``id``, its ``weight``, which is the number of seconds since it was last selected, and a
            ``reason`` if only some images were considered; None if no image is left.

        Raises:
            InputError: If none of the images that were tried can be used.
            BapsError: If the PACS does not respond, or the disk is full.
        """
        candidates, now = find_candidates(datastore, random_start=True), int(time.time())
        images = candidates.images
        selected = [
            datastore.get_image_info(image).get("strategy", {}).get(request["strategy"], {}) for image in images
        ]
        weights = dict(zip(images, (max(1, now - record.get("ts", 0)) for record in selected), strict=True))
        image = first_usable(_shuffle(images, weights), datastore)
        if image is None:
            return None
        return {"id": image, "weight": weights[image], **({"reason": candidates.note} if candidates.note else {})}


def _shuffle(images: Sequence[str], weights: dict[str, int]) -> Iterator[str]:
    """Yield the images in random order; those with large weights tend to come first."""
    remaining = list(images)
    while remaining:
        (image,) = random.choices(remaining, [weights[name] for name in remaining])  # noqa: S311 (no secret)
        remaining.remove(image)
        yield image
