"""Draw a draft on its image. Pictures are made when they are looked at, and never stored."""

from __future__ import annotations

import numpy as np

from baps.annotations.drafts import Draft, DraftStore
from baps.errors import NotFoundError
from baps.imaging.label_map import LabelMap
from baps.server.labels.drafts import DraftImages
from baps.server.web.label_differences import Difference, draw_png, find_difference, size_of
from baps.server.web.label_versions import LoadedVersion
from baps.utils.cache import Cache

_CACHE_BYTES = 16 << 20


class DraftPictures:
    """Draws drafts. Thread-safe. The last results are in memory, because a page shows several pictures of each.

    Args:
        drafts: The drafts.
        images: Finds their images.
    """

    def __init__(self, drafts: DraftStore, images: DraftImages) -> None:
        self._drafts, self._images, self._cache = drafts, images, Cache(_CACHE_BYTES, size_of)

    def look(self, draft: Draft, image: str) -> Difference:
        """Return what a draft would mark on an image, and its largest slices.

        Args:
            draft: The draft.
            image: Name of the image.

        Returns:
            The difference to an empty label.

        Raises:
            BapsError: As ``DraftImages.find``.
        """
        difference: Difference = self._cache.get_or_compute((draft.name, image), lambda: self._compute(draft, image))[0]
        return difference

    def draw(self, draft: Draft, image: str, index: int) -> bytes:
        """Draw a slice.

        Args:
            draft: The draft.
            image: Name of the image.
            index: Index of the slice across K.

        Returns:
            A PNG file.

        Raises:
            NotFoundError: If there is no such picture.
            BapsError: As ``look``.
        """
        found = next((one for one in self.look(draft, image).slices if one.index == index), None)
        if found is None:
            raise NotFoundError("There is no such picture. Open the page of the draft again.")
        return draw_png(found, "after")

    def _compute(self, draft: Draft, image: str) -> Difference:
        drawn = self._images.find(draft, self._drafts.mask(draft.name), image)
        label_map = LabelMap((drawn.mask.view(np.uint8),))
        return find_difference(None, LoadedVersion(drawn.volume, label_map, {draft.label: 1}, {}))
