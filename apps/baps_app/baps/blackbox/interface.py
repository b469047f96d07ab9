"""The black box: a promptable model of which nothing is known but its masks.

Nothing outside this package touches a model's weights, gradients or embeddings; the rest of the project sees what is
declared here. The expensive call and the cheap call are apart: ``encode`` once an image, ``decode`` once a prompt.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baps.errors import BapsError, BudgetSpentError, InputError
from baps.prompts import Point, Prompt
from baps.utils.context_collector import Collected
from baps.utils.priority_lock import PriorityLock

_spent: Collected[float] = Collected("model_seconds")

model_seconds = _spent.collecting
"""A list of the seconds that each call to a black box takes in a context, waiting for its turn left out."""


@dataclass(frozen=True)
class Capabilities:
    """What a black box can do; callers ask instead of guessing.

    Attributes:
        name: of the model, for people and records.
        weights_sha256: of the weights file, or "" where it is unknown.
        clicks: it understands positive clicks.
        negative_clicks: it understands negative clicks.
        boxes: it understands a box.
        encodings: an encoding can be kept and asked again cheaply.
        batch_size: images that are best asked at once.
        input_side: the longest side that it looks at, pixels; a larger image is reduced to it.
        resends: an image may have to be sent, and counted, more than once.
        video: it carries a mask on from slice to slice, by a memory of its own.
    """

    name: str
    weights_sha256: str
    clicks: bool
    negative_clicks: bool
    boxes: bool
    encodings: bool
    batch_size: int
    input_side: int
    resends: bool = False
    video: bool = False


class Encoding:
    """An image as the black box keeps it. Opaque: only the black box that made it can read it."""

    __slots__ = ("_content", "nbytes")

    def __init__(self, content: object, nbytes: int) -> None:
        self._content = content
        self.nbytes = nbytes
        """Memory that it holds, bytes."""


class BlackBox(ABC):
    """A promptable segmentation model that answers with masks and nothing else.

    Thread-safe: one call at a time reaches the model, and beside it one encoding that is made ahead.
    """

    def __init__(self) -> None:
        self._turns, self._turns_ahead = PriorityLock(), PriorityLock()
        self._images_asked = 0
        self.budget: int | None = None
        """Images that may be asked in all, or None for any number."""
        self.wait: Callable[[], None] | None = None
        """Called before each batch of ``segment``: long work waits here for whoever goes first."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What it can do."""

    @property
    def images_asked(self) -> int:
        """Masks asked for so far: what an API would put on the bill."""
        return self._images_asked

    def segment(self, images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        """Segment a batch.

        Args:
            images: (B, H, W, 3) uint8, RGB.
            prompts: one an image, in that image's pixels.

        Returns:
            Probability of the object at each pixel, (B, H, W) in [0, 1].

        Raises:
            InputError: on images of another form, or prompts that this black box does not understand.
            BudgetSpentError: if the batch would go over the budget; nothing was asked then.
            BapsError: if the model answers with what are no probabilities.
        """
        images = _checked(images)
        if len(images) != len(prompts):
            raise InputError(f"There are {len(images)} images but {len(prompts)} prompts; give one prompt an image.")
        prompts = [self._understood(prompt) for prompt in prompts]
        size = self.capabilities.batch_size
        with self._turn():
            self._count(len(images))
            parts = []
            for start in range(0, len(images), size):
                if self.wait:
                    self.wait()
                parts.append(self._segment(images[start : start + size], prompts[start : start + size]))
        return self._sane(np.concatenate(parts), images.shape[:3])

    def encode(self, image: NDArray[np.uint8], ahead: bool = False) -> Encoding:
        """The expensive half for one image (H, W, 3) uint8. Counts nothing: no mask was asked for.

        Args:
            image: it.
            ahead: nobody waits for it yet; other calls do not wait for it either.

        Raises:
            InputError: if the image has another form, or this black box keeps no encodings.
        """
        if not self.capabilities.encodings:
            raise InputError(f"The black box {self.capabilities.name} keeps no encodings; use segment.")
        with self._turn(ahead):
            return self._encode(_checked(image[None])[0])

    def decode(self, encoding: Encoding, prompt: Prompt) -> NDArray[np.float32]:
        """The cheap half: the probability (H, W) of the object that is prompted on an encoded image."""
        prompt = self._understood(prompt)
        with self._turn():
            self._count(1)
            answer = self._decode(encoding, prompt)
        return self._sane(answer, answer.shape)

    def carry(
        self,
        slices: Callable[[int], NDArray[np.uint8]],
        masks: Mapping[int, NDArray[np.bool_]],
        start: int,
        end: int,
        background: Mapping[int, Sequence[Point]] | None = None,
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Carry an object on from slice to slice, by the model's own memory of where it was.

        Each slice is a turn of its own: other calls are answered in between. Each counts as one image.

        Args:
            slices: gives a slice, (H, W, 3) uint8, all of one size; asked when the model comes to it, so that not all
                of them are in memory at once.
            masks: where the object is known to be, (H, W) by slice; at least on ``start``.
            start: the slice to begin beside.
            end: where to end, itself left out; below ``start`` to go down.
            background: clicks beside the object, by slice, in its pixels (X, Y).

        Yields:
            Each slice after ``start`` and the probability of the object on it, (H, W).

        Raises:
            InputError: if this black box has no such memory, or there is no mask of ``start``.
        """
        if not self.capabilities.video:
            raise InputError(f"The black box {self.capabilities.name} has no memory of slices; use segment on each.")
        if start not in masks:
            raise InputError(f"There is no mask of slice {start} to begin with. Give one.")
        memory: object = None
        for index, mask in masks.items():
            image = _checked(slices(index)[None])[0]
            with self._turn():
                memory = self._remember(memory, index, image, mask)
        step = 1 if end > start else -1
        for index in range(start + step, end, step):
            image = _checked(slices(index)[None])[0]
            if self.wait:
                self.wait()
            with self._turn():
                self._count(1)
                answer = self._carry_on(memory, index, image, step < 0, (background or {}).get(index, ()))
            yield index, self._sane(answer, image.shape[:2])

    @contextmanager
    def _turn(self, ahead: bool = False) -> Iterator[None]:
        with self._turns_ahead if ahead else self._turns:
            begun = time.perf_counter()
            try:
                yield
            finally:
                _spent.give(time.perf_counter() - begun)

    def _sane(self, answer: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """An answer that can be one; nothing is learned from another, nor shown."""
        if answer.shape != shape or not np.isfinite(answer).all():
            raise BapsError(
                f"The model {self.capabilities.name} answered with numbers that are no probabilities. Start the server "
                "again; if that does not help, bring its weights back from where they came."
            )
        return answer

    def _understood(self, prompt: Prompt) -> Prompt:
        """What of a prompt this black box understands."""
        able = self.capabilities
        if prompt.box is None and not able.clicks:
            raise InputError(f"{able.name} understands boxes only. Draw a box around the organ (Slicer: ROI).")
        if prompt.box is not None and not able.boxes and not prompt.positive:
            raise InputError(f"{able.name} understands clicks only. Click on the organ.")
        return Prompt(
            prompt.positive if able.clicks else (),
            prompt.negative if able.negative_clicks else (),
            prompt.box if able.boxes else None,
        )

    def _count(self, images: int) -> None:
        if self.budget is not None and self._images_asked + images > self.budget:
            raise BudgetSpentError(
                f"The black box has been asked {self._images_asked} images and may be asked {self.budget}: "
                f"{images} more do not fit. Raise the budget (max_images) to go on."
            )
        self._images_asked += images

    @abstractmethod
    def _segment(self, images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> NDArray[np.float32]: ...

    def _encode(self, image: NDArray[np.uint8]) -> Encoding:
        raise NotImplementedError

    def _decode(self, encoding: Encoding, prompt: Prompt) -> NDArray[np.float32]:
        raise NotImplementedError

    def _remember(self, memory: object, index: int, image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> object:
        """The memory, None at first, and in it the object on one more slice."""
        raise NotImplementedError

    def _carry_on(
        self, memory: object, index: int, image: NDArray[np.uint8], downwards: bool, background: Sequence[Point]
    ) -> NDArray[np.float32]:
        """The object on the next slice, (H, W), which the memory takes up."""
        raise NotImplementedError


def _checked(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or 0 in images.shape:
        raise InputError(
            f"A black box takes images of shape (B, H, W, 3) and type uint8, not {images.shape} {images.dtype}."
        )
    return images
