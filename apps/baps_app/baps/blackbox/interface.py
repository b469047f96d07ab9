"""Define the black box: a promptable model that returns masks and nothing else.

Nothing outside this package touches a model's weights, gradients or embeddings; the rest of the project sees what is
declared here. The expensive call and the cheap call are separate: ``encode`` once per image, ``decode`` once per
prompt.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baps.errors import BapsError, BudgetSpentError, InputError
from baps.prompts import Point, Prompt
from baps.utils.call_at_once import call_at_once
from baps.utils.priority_lock import PriorityLock

Size = tuple[int, int]
"""Height and width of the part of a square image that shows the slice, in pixels from its upper left corner. The rest
is padding."""

_seconds: ContextVar[list[float] | None] = ContextVar("model_seconds", default=None)


@contextmanager
def model_seconds() -> Iterator[list[float]]:
    """Collect the seconds of each call to a black box in this context, without the wait for the lock.

    Calls in other threads, which serve other users, are not counted.

    Yields:
        The list of seconds, which grows with each call.
    """
    seconds: list[float] = []
    token = _seconds.set(seconds)
    try:
        yield seconds
    finally:
        _seconds.reset(token)


@dataclass(frozen=True)
class Capabilities:
    """What a black box can do. Callers ask instead of guessing.

    Attributes:
        name: name of the model, for people and records.
        weights_sha256: SHA-256 of the weights, or "" if unknown.
        clicks: whether it understands positive clicks.
        negative_clicks: whether it understands negative clicks.
        boxes: whether it understands a box.
        encodings: whether an encoding can be kept and decoded again cheaply.
        batch_size: best number of images per call.
        input_size: longest side of an image that the model resolves, pixels; a larger image is downscaled to it.
        resends: whether an image may have to be sent, and counted, more than once.
        video: whether it can propagate a mask from slice to slice, with a memory of its own.
        preprocessing: how images are prepared for the network. ``canvas``: it sees the square canvas with its black
            padding. ``sam``, ``medsam``, ``sam_hq``, ``sam2`` or ``sam3``: it sees the slice without padding, resized,
            normalised and padded as the model's authors do. An adapter fits one preprocessing only.
    """

    name: str
    weights_sha256: str
    clicks: bool
    negative_clicks: bool
    boxes: bool
    encodings: bool
    batch_size: int
    input_size: int
    resends: bool = False
    video: bool = False
    preprocessing: str = "canvas"

    @property
    def identity(self) -> tuple[str, str]:
        """What an adapter of this model depends on: the weights' SHA-256 and the preprocessing."""
        return self.weights_sha256, self.preprocessing


class Encoding:
    """An image as a black box encoded it. Only the black box that made it can read it.

    Args:
        content: the encoding.
        nbytes: memory that it takes, bytes.
    """

    __slots__ = ("_content", "_shape", "nbytes")

    def __init__(self, content: object, nbytes: int) -> None:
        self._content = content
        self._shape: Size | None = None
        """Height and width of the image with its padding, pixels."""
        self.nbytes = nbytes


class BlackBox(ABC):
    """A promptable segmentation model that returns masks and nothing else.

    It is thread-safe: one call at a time reaches the model, and beside it one encoding that is prefetched. A model
    that answers several batches at once gets that many at a time, from one call or from several; clicks go before the
    next batch of a long call.

    Args:
        workers: number of batches that ``_segment`` may be given at once.
    """

    def __init__(self, workers: int = 1) -> None:
        self._workers = workers
        self._lock, self._prefetch_lock = PriorityLock(), PriorityLock()
        self._places = PriorityLock(workers)
        """One place for each batch at once. A call to a model with one worker takes ``_lock`` as a whole."""
        self._images_queried, self._count_guard, self._wait_guard = 0, threading.Lock(), threading.Lock()
        self.budget: int | None = None
        """Number of images that may be queried in all, or None for any number."""
        self.wait: Callable[[], None] | None = None
        """Function that is called before each batch: long work waits here until no user waits."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What the model can do."""

    @property
    def images_queried(self) -> int:
        """Number of masks requested so far, which is what an API would bill."""
        return self._images_queried

    @property
    def removed_replicas(self) -> tuple[str, ...]:
        """One sentence for each replica of the model that was taken out because it failed."""
        return ()

    def segment(
        self, images: NDArray[np.uint8], prompts: Sequence[Prompt], sizes: Sequence[Size] | None = None
    ) -> NDArray[np.float32]:
        """Segment a batch of images.

        Args:
            images: images, (B, H, W, 3) uint8, RGB.
            prompts: one per image, in pixels of the image.
            sizes: size of the part of each image that shows the slice, or None if there is no padding.

        Returns:
            Probability of the object at each pixel, (B, H, W) in [0, 1].

        Raises:
            InputError: if the images have another shape or type, or the black box does not understand a prompt.
            BudgetSpentError: if the batch would exceed the budget. Nothing is queried then.
            BapsError: if the model returns numbers that are not probabilities.
        """
        images = _checked_images(images)
        if len(images) != len(prompts):
            raise InputError(f"There are {len(images)} images but {len(prompts)} prompts; give one prompt per image.")
        prompts = [self._understood_part(prompt) for prompt in prompts]
        rows_by_size: dict[Size, list[int]] = {}
        for row in range(len(images)):
            size = self._shown(None if sizes is None else sizes[row], images.shape[1:3])
            rows_by_size.setdefault(size, []).append(row)
        pieces = [
            (size, rows[start : start + step])
            for size, rows in rows_by_size.items()
            for step in [self._piece_size(len(rows))]
            for start in range(0, len(rows), step)
        ]
        probability = np.zeros(images.shape[:3], np.float32)

        def answer(piece: tuple[Size, list[int]]) -> None:
            (height, width), rows = piece
            if self.wait:
                with self._wait_guard:  # Several threads at once would wait for each other.
                    self.wait()
            masks = self._segment(images[rows, :height, :width], [prompts[row] for row in rows])
            probability[rows, :height, :width] = self._checked_output(masks, (len(rows), height, width))

        def answer_beside_others(piece: tuple[Size, list[int]]) -> None:
            with self._query(self._places):
                answer(piece)

        self._count(len(images))
        if self._workers == 1:
            with self._query():
                for piece in pieces:
                    answer(piece)
        else:
            call_at_once(answer_beside_others, pieces, self._workers)
        return probability

    def encode(self, image: NDArray[np.uint8], prefetch: bool = False, size: Size | None = None) -> Encoding:
        """Encode one image, which is the expensive half of ``segment``. It is not counted as a query.

        Args:
            image: the image, (H, W, 3) uint8, RGB.
            prefetch: whether no user waits for the encoding yet. Other calls do not wait for it either.
            size: size of the part of the image that shows the slice, or None if there is no padding.

        Returns:
            The encoding.

        Raises:
            InputError: if the image has another shape or type, or this black box has no encodings.
        """
        if not self.capabilities.encodings:
            raise InputError(f"The black box {self.capabilities.name} has no encodings; use segment.")
        image = _checked_images(image[None])[0]
        shape = (image.shape[0], image.shape[1])
        height, width = self._shown(size, shape)
        with self._query(self._prefetch_lock if prefetch else None):
            encoding = self._encode(image[:height, :width])
        encoding._shape = shape
        return encoding

    def decode(self, encoding: Encoding, prompt: Prompt) -> NDArray[np.float32]:
        """Segment the object of one prompt on an encoded image, which is the cheap half of ``segment``.

        Args:
            encoding: what ``encode`` returned.
            prompt: the prompt, in pixels of the image.

        Returns:
            Probability of the object at each pixel, (H, W) in [0, 1]; 0 in the padding.
        """
        prompt = self._understood_part(prompt)
        with self._query():
            self._count(1)
            probability = self._decode(encoding, prompt)
        return _padded(self._checked_output(probability, probability.shape), encoding._shape)

    def propagate(
        self,
        slices: Callable[[int], NDArray[np.uint8]],
        masks: Mapping[int, NDArray[np.bool_]],
        start: int,
        end: int,
        background: Mapping[int, Sequence[Point]] | None = None,
        size: Size | None = None,
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Propagate an object from slice to slice, with the model's own memory of where it was.

        The lock is taken for each slice, so that other calls are answered in between. Each slice counts as one image.

        Args:
            slices: returns the slice of an index, (H, W, 3) uint8, all of one size. It is called when the model reaches
                the slice, so that not all slices are in memory at once.
            masks: known masks of the object by slice index, (H, W); at least that of ``start``.
            start: index of the slice to begin beside.
            end: index to stop before; below ``start`` to go down.
            background: negative clicks by slice index, (X, Y) in pixels of the slice.
            size: size of the part of each image that shows the slice, or None if there is no padding.

        Yields:
            Index of each slice after ``start``, and the probability of the object on it, (H, W).

        Raises:
            InputError: if this black box has no such memory, or there is no mask of ``start``.
        """
        if not self.capabilities.video:
            raise InputError(f"The black box {self.capabilities.name} has no memory of slices; use segment on each.")
        if start not in masks:
            raise InputError(f"There is no mask of slice {start} to begin with. Give one.")
        memory: object = None
        for index, mask in masks.items():
            image = _checked_images(slices(index)[None])[0]
            height, width = self._shown(size, mask.shape)
            with self._query():
                memory = self._remember(memory, index, image[:height, :width], mask[:height, :width])
        step = 1 if end > start else -1
        for index in range(start + step, end, step):
            image = _checked_images(slices(index)[None])[0]
            if self.wait:
                self.wait()
            with self._query():
                self._count(1)
                probability = self._propagate(
                    memory, index, image[:height, :width], step < 0, (background or {}).get(index, ())
                )
            yield index, _padded(self._checked_output(probability, (height, width)), (image.shape[0], image.shape[1]))

    @contextmanager
    def _query(self, lock: PriorityLock | None = None) -> Iterator[None]:
        with lock or self._lock:
            started = time.perf_counter()
            try:
                yield
            finally:
                if (seconds := _seconds.get()) is not None:
                    seconds.append(time.perf_counter() - started)

    def _shown(self, size: Size | None, shape: tuple[int, ...]) -> Size:
        """Return the part of an image (H, W) that the model sees: without padding, unless it works on the canvas."""
        height, width = shape
        if size is None or self.capabilities.preprocessing == "canvas":
            return height, width
        return min(size[0], height), min(size[1], width)

    def _checked_output(self, probability: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return an output that can be one; another is neither shown nor learned from."""
        if probability.shape != shape or not np.isfinite(probability).all():
            raise BapsError(
                f"The model {self.capabilities.name} returned numbers that are not probabilities. Restart the server; "
                "if that does not help, restore its weights from where they came."
            )
        return probability

    def _understood_part(self, prompt: Prompt) -> Prompt:
        """Return the part of a prompt that this black box understands."""
        capabilities = self.capabilities
        if prompt.box is None and not capabilities.clicks:
            raise InputError(f"{capabilities.name} understands boxes only. Draw a box around the organ (Slicer: ROI).")
        if prompt.box is not None and not capabilities.boxes and not prompt.positive:
            raise InputError(f"{capabilities.name} understands clicks only. Click on the organ.")
        return Prompt(
            prompt.positive if capabilities.clicks else (),
            prompt.negative if capabilities.negative_clicks else (),
            prompt.box if capabilities.boxes else None,
        )

    def _count(self, images: int) -> None:
        with self._count_guard:
            if self.budget is not None and self._images_queried + images > self.budget:
                raise BudgetSpentError(
                    f"{self._images_queried} of {self.budget} images have been sent to the black box: "
                    f"{images} more exceed the budget. Raise it (max_images) to go on."
                )
            self._images_queried += images

    def _piece_size(self, images: int) -> int:
        """Return the maximum number of images in each ``_segment`` of a call with this number of images."""
        return self.capabilities.batch_size

    @abstractmethod
    def _segment(self, images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> NDArray[np.float32]: ...

    def _encode(self, image: NDArray[np.uint8]) -> Encoding:
        raise NotImplementedError

    def _decode(self, encoding: Encoding, prompt: Prompt) -> NDArray[np.float32]:
        raise NotImplementedError

    def _remember(self, memory: object, index: int, image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> object:
        """Return the memory, which is None at first, after adding the object on one more slice."""
        raise NotImplementedError

    def _propagate(
        self, memory: object, index: int, image: NDArray[np.uint8], downwards: bool, background: Sequence[Point]
    ) -> NDArray[np.float32]:
        """Return the probability of the object on the next slice, (H, W), and add it to the memory."""
        raise NotImplementedError


def _padded(probability: NDArray[np.float32], shape: Size | None) -> NDArray[np.float32]:
    """Add the padding of an image (H, W) to a mask of the part that the model saw."""
    if shape is None or shape == probability.shape:
        return probability
    padded = np.zeros(shape, np.float32)
    padded[: probability.shape[0], : probability.shape[1]] = probability
    return padded


def _checked_images(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or 0 in images.shape:
        raise InputError(
            f"A black box takes images of shape (B, H, W, 3) and type uint8, not {images.shape} {images.dtype}."
        )
    return images
