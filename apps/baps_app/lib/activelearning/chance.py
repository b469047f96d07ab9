"""The strategy of Next Sample that offers any image, one that was not offered for long rather than another."""

from __future__ import annotations

import random
import time
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.tasks.activelearning.random import Random


class Chance(Random):
    """As the host's, which fails where all the images that are left were offered within this very second."""

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """The image's ``id``, and its ``weight``: the seconds since it was offered; None if none is left."""
        images, now = datastore.get_unlabeled_images(), int(time.time())
        if not images:
            return None
        offered = [datastore.get_image_info(image).get("strategy", {}).get(request["strategy"], {}) for image in images]
        weights = [max(1, now - one.get("ts", 0)) for one in offered]
        (chosen,) = random.choices(range(len(images)), weights)  # noqa: S311 (nothing is kept secret by it)
        return {"id": images[chosen], "weight": weights[chosen]}
