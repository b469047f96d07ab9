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

from baps.server.datastores.candidates import Candidates, find_candidates
from baps.server.strategies.preview import Offer, Preview, last_selected
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

    def preview(self, candidates: Candidates, datastore: Datastore, count: int) -> Preview:
        """Return what it would offer, see ``Previewable``. The images with the best chances come first."""
        now, selected = int(time.time()), last_selected(datastore, candidates.images, "random")
        weights = {image: max(1, now - selected.get(image, 0)) for image in candidates.images}
        total = sum(weights.values())
        offers = []
        for image in sorted(weights, key=lambda name: (-weights[name], name))[:count]:
            since = "never offered" if image not in selected else f"last offered {_age(now - selected[image])} ago"
            percent = 100 * weights[image] / total
            chance = f"chance {percent:.0f} %" if percent >= 1 else "chance below 1 %"
            offers.append(Offer(image, f"{since}; {chance}"))
        rule = "At random. The chance of an image grows with the time since it was last offered."
        return Preview(rule, tuple(offers))


def _age(seconds: int) -> str:
    for size, name in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = seconds // size
            return f"{count} {name}{'s' * (count != 1)}"
    return "a moment"


def _shuffle(images: Sequence[str], weights: dict[str, int]) -> Iterator[str]:
    """Yield the images in random order; those with large weights tend to come first."""
    remaining = list(images)
    while remaining:
        (image,) = random.choices(remaining, [weights[name] for name in remaining])  # noqa: S311 (no secret)
        remaining.remove(image)
        yield image
