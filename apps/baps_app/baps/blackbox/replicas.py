"""Answer batches by several replicas of a black box at once, and take out those that fail.

The model in this process answers what is interactive: ``encode``, ``decode`` and ``propagate``. Each replica is a
process of its own, which answers pieces of ``segment``. They start with the first such call, so that neither the start
of a server nor a first click waits for them.

How a call is cut into pieces does not depend on the number of replicas, every replica computes with one CPU thread, and
all give the same answers bit for bit. So the result depends neither on their number nor on which of them answers, nor
on whether one dies.

Threads: ``BlackBox`` lets one thread per replica into ``_segment``. A thread takes an idle replica, asks it and gives
it back; it never holds two. ``_changed`` guards the lists. ``_lock`` guards the model in this process.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from baps.blackbox.interface import BlackBox, Capabilities, Encoding
from baps.errors import BapsError
from baps.prompts import Point, Prompt

logger = logging.getLogger(__name__)

Answer: TypeAlias = NDArray[np.float32]

_CHECK_EVERY = 200
"""Every so many pieces, a second replica is asked for the same piece."""

_START_SECONDS = 600.0
"""Seconds that a replica has to load the weights, and to answer its first piece."""

_MIN_SECONDS, _TIMES_SLOWEST = 60.0, 20.0
"""A later answer may take so many seconds, or so many times the slowest answer so far, whichever is more."""


class ReplicaError(BapsError):
    """A replica failed. The message completes the sentence "Replica 2 on cuda:1 ..."."""


class Replica(ABC):
    """One more instance of a black box.

    Args:
        name: name for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def start(self, timeout: float) -> None:
        """Load the model.

        Args:
            timeout: seconds that it may take.

        Raises:
            ReplicaError: if it fails or takes longer.
        """

    @abstractmethod
    def segment(self, images: NDArray[np.uint8], prompts: Sequence[Prompt], timeout: float) -> Answer:
        """Segment a batch that the model can take at once.

        Args:
            images: images, (B, H, W, 3) uint8, RGB.
            prompts: one per image, in pixels of the image.
            timeout: seconds that it may take.

        Returns:
            Probability of the object at each pixel, (B, H, W).

        Raises:
            ReplicaError: if it fails or takes longer.
        """

    @abstractmethod
    def stop(self) -> None:
        """End the replica, whatever it is doing."""


class ReplicatedBlackBox(BlackBox):
    """A black box with replicas that answer several batches at once.

    A replica that dies, fails, does not answer in time or answers differently is taken out, and its piece is asked
    again. Such images are not counted again, because nobody bills them. Which of two different answers is right, the
    model in this process decides: it is the one nearer to its own.

    Args:
        model: the model in this process.
        replicas: its replicas, which are not started yet.
    """

    def __init__(self, model: BlackBox, replicas: Sequence[Replica]) -> None:
        super().__init__(len(replicas))
        self._first = model
        self._replicas, self._idle = list(replicas), deque(replicas)
        self._removed: list[str] = []
        self._changed, self._starting = threading.Condition(), threading.Lock()
        self._started = False
        self._numbers = itertools.count(1)
        self._slowest = 0.0

    @property
    @override
    def capabilities(self) -> Capabilities:
        return self._first.capabilities

    @property
    @override
    def removed_replicas(self) -> tuple[str, ...]:
        return tuple(self._removed)

    def _segment(self, images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> Answer:
        with self._starting:
            if not self._started:
                self._start(images, prompts)
                self._started = True
        check = next(self._numbers) % _CHECK_EVERY == 0
        while True:
            replica, answer = self._ask(images, prompts)
            if not check:
                return answer
            try:
                other, second = self._ask(images, prompts, replica)
            except BapsError:  # There is no other one to ask.
                return answer
            if (agreed := self._compare({replica: answer, other: second}, images, prompts)) is not None:
                return agreed

    def _start(self, images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> None:
        """Start all replicas at once, and let each answer the first piece."""

        def start(replica: Replica) -> Answer | None:
            try:
                replica.start(_START_SECONDS)
                begun = time.monotonic()
                answer = replica.segment(images, prompts, _START_SECONDS)
                self._note_seconds(begun)
            except ReplicaError as error:
                self._remove(replica, str(error))
                return None
            return answer

        with ThreadPoolExecutor(len(self._replicas)) as pool:
            answers = dict(zip(tuple(self._replicas), pool.map(start, tuple(self._replicas)), strict=True))
        self._compare({replica: answer for replica, answer in answers.items() if answer is not None}, images, prompts)

    def _ask(
        self, images: NDArray[np.uint8], prompts: Sequence[Prompt], other_than: Replica | None = None
    ) -> tuple[Replica, Answer]:
        """Ask one replica after another until one answers; return it and its answer."""
        while True:
            replica = self._take(other_than)
            begun = time.monotonic()
            try:
                answer = replica.segment(images, prompts, max(_MIN_SECONDS, _TIMES_SLOWEST * self._slowest))
            except ReplicaError as error:
                self._remove(replica, str(error))
                continue
            self._note_seconds(begun)
            with self._changed:
                if replica not in self._replicas:  # Another thread has found it wrong meanwhile.
                    continue
                self._idle.append(replica)
                self._changed.notify_all()
            return replica, answer

    def _take(self, other_than: Replica | None) -> Replica:
        with self._changed:
            while True:
                if not any(replica is not other_than for replica in self._replicas):
                    raise BapsError(
                        f"No replica of the model {self.capabilities.name} is left. {' '.join(self._removed[-1:])} "
                        "Look at the messages before, and start it again, with fewer replicas (setting device) if "
                        "memory was short. A training resumes from its log."
                    )
                for replica in self._idle:
                    if replica is not other_than:
                        self._idle.remove(replica)
                        return replica
                self._changed.wait()

    def _compare(
        self, answers: Mapping[Replica, Answer], images: NDArray[np.uint8], prompts: Sequence[Prompt]
    ) -> Answer | None:
        """Return the answer to a piece, and take out the replicas that gave another one. None: there is no answer."""
        given = list(answers.values())
        if not given or all(np.array_equal(answer, given[0]) for answer in given):
            return given[0] if given else None
        with self._lock:
            reference = self._first._segment(images, prompts)
        right = min(given, key=lambda answer: float(np.abs(answer - reference).mean()))
        for replica, answer in answers.items():
            if not np.array_equal(answer, right):
                difference = float(np.abs(answer - right).max())
                self._remove(
                    replica,
                    f"answers differently from the others (by up to {difference:.2g} in probability). Replicas need "
                    "devices of one kind; if they are, test this one. Of its answers since the last comparison, "
                    f"{_CHECK_EVERY} pieces ago at the most, some may be wrong: train again without it.",
                )
        return right

    def _note_seconds(self, begun: float) -> None:
        with self._changed:
            self._slowest = max(self._slowest, time.monotonic() - begun)

    def _remove(self, replica: Replica, reason: str) -> None:
        with self._changed:
            if replica not in self._replicas:
                return
            self._replicas.remove(replica)
            if replica in self._idle:
                self._idle.remove(replica)
            left = len(self._replicas)
            sentence = f"Replica {replica.name} of the model {self.capabilities.name} {reason}"
            self._removed.append(sentence)
            self._changed.notify_all()
        logger.warning("%s It was taken out; %d are left.", sentence, left)
        replica.stop()

    def _encode(self, image: NDArray[np.uint8]) -> Encoding:
        return self._first._encode(image)

    def _decode(self, encoding: Encoding, prompt: Prompt) -> Answer:
        return self._first._decode(encoding, prompt)

    def _remember(self, memory: object, index: int, image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> object:
        return self._first._remember(memory, index, image, mask)

    def _propagate(
        self, memory: object, index: int, image: NDArray[np.uint8], downwards: bool, background: Sequence[Point]
    ) -> Answer:
        return self._first._propagate(memory, index, image, downwards, background)
