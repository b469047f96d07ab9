"""Remember the masks of the last clicks, for viewers that send all their clicks with every request and no mask."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from baps.prompts.volume_prompts import Mask, VolumeBox, VolumePoint

SentPrompt = VolumePoint | VolumeBox
"""A prompt of a viewer that sends clicks and boxes only."""

_MAX_BYTES = 128 << 20


@dataclass(frozen=True)
class _Packed:
    bits: NDArray[np.uint8]
    shape: tuple[int, ...]

    def unpack(self) -> Mask:
        return np.unpackbits(self.bits, count=int(np.prod(self.shape))).astype(bool).reshape(self.shape)


class RememberedMasks:
    """Finds the mask that a request goes on from. The least recently used masks are forgotten first.

    Args:
        max_bytes: bound on the memory that masks take, one bit for a voxel.
    """

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._masks: LRUCache[tuple[Hashable, frozenset[SentPrompt]], _Packed] = LRUCache(
            max_bytes, getsizeof=lambda packed: packed.bits.nbytes
        )
        self._lock = threading.Lock()

    def find(self, key: Hashable, prompts: Sequence[SentPrompt]) -> tuple[bool, Mask] | None:
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

    def add(self, key: Hashable, prompts: Sequence[SentPrompt], mask: Mask) -> None:
        """Remember a mask, unless it is larger than the bound.

        Args:
            key: names the image and the adapter.
            prompts: the prompts that it was made from.
            mask: the mask, (I, J, K).
        """
        packed = _Packed(np.packbits(mask), mask.shape)
        with self._lock:
            if packed.bits.nbytes <= self._masks.maxsize:
                self._masks[key, frozenset(prompts)] = packed
