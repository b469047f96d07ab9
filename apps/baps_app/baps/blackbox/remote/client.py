"""A model on another machine as a black box, asked through the Open Inference Protocol (KServe, Triton and others).

What is sent is counted, also what is sent again after a failure: a server may have answered what never arrived.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baps.blackbox.interface import BlackBox, Capabilities
from baps.blackbox.remote.inference_protocol import Address, Description, UnreachableError, connect
from baps.blackbox.remote.prompt_tensors import to_tensors
from baps.blackbox.remote.remote_tensors import check_answer, check_description
from baps.blackbox.remote.settings import RemoteSettings
from baps.errors import BapsError, InputError
from baps.prompts import Prompt

logger = logging.getLogger(__name__)

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0
"""Seconds between looks at a server that has gone: each is twice the one before."""


class RemoteBlackBox(BlackBox):
    """A model on another machine.

    ``capabilities.weights_sha256`` is the SHA-256 of what the server declares of the model: name, versions, platform
    and tensors. The address is no part of it. Weights that are exchanged under the same declaration are not noticed.

    Args:
        settings: see there.
        identity: what ``weights_sha256`` must be, or "" for any.

    Raises:
        InputError: if the model has other tensors than it needs, or another identity.
        BapsError: if it is not there, or what answers does not speak the protocol.
    """

    def __init__(self, settings: RemoteSettings, identity: str = "") -> None:
        super().__init__()
        self._where, self._retry_seconds = settings.address, settings.retry_seconds
        self._server = connect(Address.parse(settings.address), settings.timeout)
        about = self._server.describe()
        if not self._server.ready():
            raise BapsError(f"The model at {self._where} is not ready. Wait until its server has loaded it.")
        self._form = check_description(about, self._where)
        self._version = ""
        """Of the model, as the first answer tells it."""
        self._capabilities = Capabilities(
            name=about.name,
            weights_sha256=_identity(about),
            clicks="clicks" in settings.prompts,
            negative_clicks="clicks" in settings.prompts,
            boxes="boxes" in settings.prompts,
            encodings=False,
            batch_size=1 if self._form.one_by_one else settings.batch_size,
            input_side=self._form.side or settings.image_size,
            resends=True,
        )
        found = self._capabilities.weights_sha256
        if identity and identity.lower() != found:
            raise InputError(
                f"The model at {self._where} has the identity {found}, but {identity.lower()} was expected. It is "
                "another model or version: bring the old one back, or give the identity that you trust."
            )

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def _segment(self, images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        height, width = images.shape[1:3]
        side = self._form.side
        if side and (height, width) != (side, side):
            raise InputError(
                f"The model at {self._where} takes images of {side} x {side} pixels, not {height} x {width}. Place the "
                "image on a canvas of that size."
            )
        points, labels = to_tensors(prompts)
        answer = self._ask({"image": images, "points": points, "labels": labels})
        return check_answer(answer, images.shape[:3], self._form.output, self._where)

    def _ask(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Ask until an answer comes, or the server stays away for too long."""
        pause, deadline = _SHORTEST_PAUSE, float("inf")
        while True:
            try:
                answer = self._server.infer(inputs, self._form.output)
                break
            except UnreachableError as error:
                failure = error
            deadline = min(deadline, time.monotonic() + self._retry_seconds)
            logger.warning("%s Waiting for it.", failure)
            back = False
            while not back:  # No image is sent meanwhile.
                left = deadline - time.monotonic()
                if left <= 0:
                    raise BapsError(
                        f"{failure} The server stayed away for {self._retry_seconds:g} s. Start it, or fix the network "
                        "between; then try again. A training resumes from its log when it is started again."
                    ) from failure
                time.sleep(min(pause, left))
                pause = min(2 * pause, _LONGEST_PAUSE)
                try:
                    back = self._server.ready()
                except UnreachableError as error:
                    failure = error
            self._check_same(_identity(self._server.describe()), self._capabilities.weights_sha256)
            self._count(len(inputs["image"]))
        self._version = self._version or answer.version
        self._check_same(answer.version, self._version)
        return answer.tensor

    def _check_same(self, found: str, before: str) -> None:
        """One training must not ask two models, nor an adapter serve another than its own."""
        if found != before:
            raise BapsError(
                f"The model at {self._where} was exchanged while it was asked. Bring the old one back, or start this "
                "program again to work with the new one."
            )


def _identity(about: Description) -> str:
    """The same over HTTP and gRPC, which list tensors in any order."""
    return hashlib.sha256(json.dumps(asdict(about), sort_keys=True).encode()).hexdigest()
