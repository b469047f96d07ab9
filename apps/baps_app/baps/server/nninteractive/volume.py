"""Hold the image of a session, its prompts, and the mask that they gave, with the states before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baps.errors import InputError
from baps.inference.packed_mask import PackedMask
from baps.inference.volume_predictor import VolumeAnswer, VolumeImage
from baps.prompts.volume_prompts import VolumePrompt

MAX_PROMPTS = 500
"""Maximum number of prompts on one object."""

_MAX_UNDO = 20
"""Number of prompts that can be undone."""

Mask = NDArray[np.bool_]
Ranges = tuple[slice, slice, slice]
Predict = Callable[[VolumeImage, tuple[VolumePrompt, ...], int, Mask], VolumeAnswer]
"""Predicts from the image, all prompts, the number of new ones, and the mask so far."""


def bytes_needed(shape: tuple[int, ...], nbytes: int) -> int:
    """Return the memory that an image and everything that belongs to it may take.

    Args:
        shape: Size of the image along each axis, channels first.
        nbytes: Size of the image.

    Returns:
        Bytes: of the image; of four masks, of a byte per voxel, during a prediction; and of earlier masks and painted
            prompts, of a bit per voxel each.
    """
    voxels = int(np.prod(shape[1:], dtype=object))
    return nbytes + 4 * voxels + (_MAX_UNDO + 8) * (voxels // 8 + 1)


@dataclass(frozen=True)
class _State:
    # What one prompt changes: the mask, the prompts, and how many of them have no answer yet.

    mask: PackedMask
    prompts: tuple[VolumePrompt, ...] = ()
    pending: int = 0


class SegmentedVolume:
    """An image with the prompts on one object and their mask. It is not thread-safe: its session locks it.

    Args:
        image: The image.
    """

    def __init__(self, image: VolumeImage) -> None:
        self.image = image
        self._state = _State(PackedMask.empty(image.shape))
        self._earlier: deque[_State] = deque(maxlen=_MAX_UNDO)
        self._sent: Ranges | None = None

    @property
    def mask(self) -> Mask:
        """The object, (X, Y, Z); a new array."""
        return self._state.mask.unpack()

    @property
    def is_empty(self) -> bool:
        """Whether the mask has no voxel."""
        return self._state.mask.where is None

    @property
    def pending(self) -> int:
        """Number of prompts that have no answer yet."""
        return self._state.pending

    def add(self, prompt: VolumePrompt, predict: Predict | None) -> VolumeAnswer | None:
        """Add a prompt, and predict the mask. If that fails, the prompt is not added.

        Args:
            prompt: The prompt.
            predict: Predicts the mask, or None to wait for more prompts.

        Returns:
            The answer, or None if nothing was predicted.

        Raises:
            InputError: If there are too many prompts.
        """
        before = self._state
        painted = prompt.nbytes + sum(one.nbytes for one in before.prompts)
        if len(before.prompts) >= MAX_PROMPTS or painted > np.prod(self.image.shape):
            raise InputError(
                f"There are {len(before.prompts)} prompts on this object; more are not possible. Reset the segment, or "
                "begin the next one."
            )
        self._state = _State(before.mask, (*before.prompts, prompt), before.pending + 1)
        try:
            answer = self.predict(predict) if predict else None
        except BaseException:
            self._state = before
            raise
        self._earlier.append(before)
        return answer

    def predict(self, predict: Predict) -> VolumeAnswer | None:
        """Predict the mask from the prompts that have no answer yet.

        Args:
            predict: Predicts the mask.

        Returns:
            The answer, or None if all prompts have one.
        """
        state = self._state
        if not state.pending:
            return None
        answer = predict(self.image, state.prompts, state.pending, self.mask)
        self._state = _State(PackedMask.of(answer.mask), state.prompts)
        return answer

    def start_from(self, mask: Mask) -> None:
        """Replace the mask and remove all prompts; this can be undone.

        Args:
            mask: The object, (X, Y, Z).
        """
        self._earlier.append(self._state)
        self._state = _State(PackedMask.of(mask))
        self._sent = self._state.mask.where  # The client has it.

    def undo(self) -> bool:
        """Restore the state before the last prompt.

        Returns:
            Whether there was one.
        """
        if not self._earlier:
            return False
        self._state = self._earlier.pop()
        return True

    def reset(self) -> None:
        """Remove all prompts and the mask. The client clears its own mask, and this cannot be undone."""
        self._state = _State(PackedMask.empty(self.image.shape))
        self._earlier.clear()
        self._sent = None

    def forget_sent(self) -> None:
        """Note that the client has a new, empty mask."""
        self._sent = None

    def changed_part(self) -> tuple[list[list[int]] | None, Mask]:
        """Return the part of the mask that the client must replace: where the object is, and where it was.

        Returns:
            Its first voxel and the one after its last along each axis, or None if both are empty; and its values.
        """
        now = self._state.mask.where
        ranges = [part for part in (self._sent, now) if part]
        self._sent = now
        if not ranges:
            return None, np.zeros((0, 0, 0), bool)
        box = [[min(one[axis].start for one in ranges), max(one[axis].stop for one in ranges)] for axis in range(3)]
        return box, self.mask[tuple(slice(*one) for one in box)]
