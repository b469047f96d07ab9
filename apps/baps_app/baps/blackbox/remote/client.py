"""Query a model on another machine as a black box, through the Open Inference Protocol (KServe, Triton and others).

Every image that is sent is counted, also when it is sent again after a failure: the server may have answered although
the response never arrived.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from queue import LifoQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from baps.blackbox.interface import BlackBox, Capabilities
from baps.blackbox.remote.inference_protocol import (
    Address,
    Description,
    InferenceServer,
    UnreachableError,
    connect,
)
from baps.blackbox.remote.prompt_tensors import to_tensors
from baps.blackbox.remote.remote_tensors import check_description, check_output
from baps.blackbox.remote.settings import RemoteSettings
from baps.errors import BapsError, InputError
from baps.prompts import Prompt

logger = logging.getLogger(__name__)

_MIN_PAUSE, _MAX_PAUSE = 0.5, 8.0
"""Seconds between attempts to reach a server that has gone. Each pause is twice the one before."""


class RemoteBlackBox(BlackBox):
    """A model on another machine.

    ``capabilities.weights_sha256`` is the SHA-256 of what the server declares about the model: name, versions, platform
    and tensors. The address is not part of it. Weights that are replaced under the same declaration are not noticed.

    With several connections, a call is cut into one piece for each of them, or into several of at most the batch size.
    Each request has a connection of its own, which a load balancer may lead to another replica.

    Args:
        settings: settings of the model.
        identity: what ``weights_sha256`` must be, or "" for any.

    Raises:
        InputError: if the model has other tensors than required, or another identity.
        BapsError: if it cannot be reached, or does not speak the protocol.
    """

    def __init__(self, settings: RemoteSettings, identity: str = "") -> None:
        super().__init__(settings.connections)
        self._address, self._retry_seconds = settings.address, settings.retry_seconds
        servers = [connect(Address.parse(settings.address), settings.timeout) for _ in range(settings.connections)]
        self._idle = LifoQueue[InferenceServer]()
        for server in servers:
            self._idle.put(server)
        description = servers[0].describe()
        if not servers[0].ready():
            raise BapsError(f"The model at {self._address} is not ready. Wait until its server has loaded it.")
        self._form = check_description(description, self._address)
        self._version, self._version_guard = "", threading.Lock()
        """Version of the model, as the first response reports it."""
        self._capabilities = Capabilities(
            name=description.name,
            weights_sha256=_identity(description),
            clicks="clicks" in settings.prompts,
            negative_clicks="clicks" in settings.prompts,
            boxes="boxes" in settings.prompts,
            encodings=False,
            batch_size=1 if self._form.single_image else settings.batch_size,
            input_size=self._form.image_size or settings.image_size,
            resends=True,
            preprocessing="remote" if self._form.sizes else "canvas",
        )
        digest = self._capabilities.weights_sha256
        if identity and identity.lower() != digest:
            raise InputError(
                f"The model at {self._address} has the identity {digest}, but {identity.lower()} was expected. It is "
                "another model or version: restore the old one, or give the identity that you trust."
            )

    @property
    @override
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @override
    def _piece_size(self, images: int) -> int:
        batch_size = self._capabilities.batch_size
        if self._workers == 1:
            return batch_size
        rounds = math.ceil(images / (batch_size * self._workers))
        return math.ceil(images / (rounds * self._workers))

    def _segment(self, images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        count, height, width, _ = images.shape
        size, inputs = self._form.image_size, dict[str, NDArray[Any]]()
        if self._form.sizes:
            inputs["sizes"] = np.full((count, 2), (height, width), np.int32)
            side = size or max(height, width)  # The interface removed the padding, but images on the wire are squares.
            padding = [(0, max(0, side - length)) for length in (height, width)]
            images = np.pad(images, ((0, 0), *padding, (0, 0)))
        if size and images.shape[1:3] != (size, size):
            raise InputError(
                f"The model at {self._address} takes images of {size} x {size} pixels, not {height} x {width}. Put the "
                "image on a canvas of that size."
            )
        points, labels = to_tensors(prompts)
        server = self._idle.get()
        try:
            output = self._infer(server, {"image": images, "points": points, "labels": labels, **inputs})
        finally:
            self._idle.put(server)
        return check_output(output, images.shape[:3], self._form.output, self._address)[:, :height, :width]

    def _infer(self, server: InferenceServer, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Query until a response comes, or the server stays away for too long."""
        pause, deadline = _MIN_PAUSE, float("inf")
        while True:
            try:
                response = server.infer(inputs, self._form.output)
                break
            except UnreachableError as error:
                failure = error
            deadline = min(deadline, time.monotonic() + self._retry_seconds)
            logger.warning("%s Waiting for it.", failure)
            ready = False
            while not ready:  # No image is sent meanwhile.
                left = deadline - time.monotonic()
                if left <= 0:
                    raise BapsError(
                        f"{failure} The server stayed away for {self._retry_seconds:g} s. Start it, or fix the network "
                        "between; then try again. A training resumes from its log when it is started again."
                    ) from failure
                time.sleep(min(pause, left))
                pause = min(2 * pause, _MAX_PAUSE)
                try:
                    ready = server.ready()
                except UnreachableError as error:
                    failure = error
            self._check_same(_identity(server.describe()), self._capabilities.weights_sha256)
            self._count(len(inputs["image"]))
        with self._version_guard:
            self._version = self._version or response.version
        self._check_same(response.version, self._version)
        return response.tensor

    def _check_same(self, current: str, expected: str) -> None:
        """Check that the model is unchanged: neither a training nor an adapter may mix two models."""
        if current != expected:
            raise BapsError(
                f"The model at {self._address} was replaced while it was in use. Restore the old one, or start this "
                "program again to work with the new one."
            )


def _identity(description: Description) -> str:
    """Hash the description, equal over HTTP and gRPC, which list tensors in any order."""
    return hashlib.sha256(json.dumps(asdict(description), sort_keys=True).encode()).hexdigest()
