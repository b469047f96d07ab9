"""Remember the masks of the last clicks, for viewers that send all their clicks with every request and no mask."""

from __future__ import annotations

import math
import threading
from collections.abc import Hashable, Sequence

from cachetools import LRUCache

from baps.inference.packed_mask import PackedMask
from baps.prompts.volume_prompts import ClickOrBox, Mask

_MAX_BYTES = 128 << 20


class RememberedMasks:
    """Finds the mask that a request goes on from. The least recently used masks are forgotten first.

    Args:
        max_bytes: bound on the memory that masks may take, counted as a bit for each voxel of the image.
    """

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._masks: LRUCache[tuple[Hashable, frozenset[ClickOrBox]], PackedMask] = LRUCache(max_bytes, getsizeof=_size)
        self._lock = threading.Lock()

    def find(self, key: Hashable, prompts: Sequence[ClickOrBox]) -> tuple[bool, Mask] | None:
        """Find the mask that was made from most of some prompts, and from no other.

        Args:
            key: names the image and the adapter.
            prompts: all prompts of a request, in any order.

        Returns:
            Whether it was made from all of them, and the mask, (I, J, K); None if there is no such mask.
        """
        wanted = frozenset(prompts)
        with self._lock:
            known = [made for image, made in self._masks if image == key and made <= wanted]
            if not known:
                return None
            best = max(known, key=len)
            packed = self._masks[key, best]
        return best == wanted, packed.unpack()

    def add(self, key: Hashable, prompts: Sequence[ClickOrBox], mask: Mask) -> None:
        """Remember a mask, unless it is larger than the bound.

        Args:
            key: names the image and the adapter.
            prompts: the prompts that it was made from.
            mask: the mask, (I, J, K).
        """
        packed = PackedMask.of(mask)
        with self._lock:
            if _size(packed) <= self._masks.maxsize:
                self._masks[key, frozenset(prompts)] = packed


def _size(mask: PackedMask) -> int:
    """Return the bytes that a mask takes at most; small ones count as much, so that their number is bounded too."""
    return -(-math.prod(mask.shape) // 8)
