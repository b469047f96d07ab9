"""Hold a mask in little memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baps.prompts.volume_prompts import Mask, Triple, bounding_box


@dataclass(frozen=True)
class PackedMask:
    """A mask that takes a bit for each voxel of the box around it.

    Attributes:
        shape: size of the mask along each axis.
        where: the box around the marked voxels, or None if there are none.
        bits: the voxels of the box, eight to a byte.
    """

    shape: Triple
    where: tuple[slice, slice, slice] | None
    bits: NDArray[np.uint8]

    @classmethod
    def empty(cls, shape: Triple) -> PackedMask:
        """Return a mask without any voxel.

        Args:
            shape: its size along each axis.

        Returns:
            The mask.
        """
        return cls(shape, None, np.empty(0, np.uint8))

    @classmethod
    def of(cls, mask: Mask) -> PackedMask:
        """Pack a mask.

        Args:
            mask: the mask, (X, Y, Z).

        Returns:
            The packed mask.
        """
        x, y, z = mask.shape
        where = bounding_box(mask)
        return cls((x, y, z), where, np.packbits(mask[where])) if where else cls.empty((x, y, z))

    def unpack(self) -> Mask:
        """Unpack the mask.

        Returns:
            The mask, (X, Y, Z); a new array.
        """
        mask = np.zeros(self.shape, bool)
        if self.where:
            part = tuple(one.stop - one.start for one in self.where)
            mask[self.where] = np.unpackbits(self.bits, count=int(np.prod(part))).reshape(part)
        return mask
