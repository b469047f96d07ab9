"""Query a model behind an nninteractive-server as a black box that answers in 3D.

Each prediction is stateless: the prompts of the one before are removed, all prompts are sent, and the server predicts
at the last one. Every prediction that is requested is counted, also when it is requested again after a failure.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from baps.blackbox.remote.inference_protocol import UnreachableError
from baps.blackbox.volumes.identity import identify, is_same_answer
from baps.blackbox.volumes.interface import Spacing, VolumeBlackBox, VolumeCapabilities
from baps.blackbox.volumes.nninteractive_session import BusyError, LeaseLostError, NnInteractiveSession
from baps.blackbox.volumes.settings import VolumeRemoteSettings
from baps.errors import BapsError, InputError
from baps.prompts.volume_prompts import Mask, Triple, VolumeBox, VolumePoint, VolumePrompt
from baps.utils.packed_arrays import TYPES

logger = logging.getLogger(__name__)

_MIN_PAUSE, _MAX_PAUSE, _MAX_RETRY_AFTER = 0.5, 8.0, 30.0
"""Seconds between attempts to reach a server that has gone; each pause is twice the one before. A server that is full
may ask for a longer one."""

_IDENTIFYING = (
    "supported_interactions", "channel_mapping", "num_interaction_channels", "supports_initial_label",
    "supports_zero_shot_label_refinement", "preferred_scribble_thickness", "interaction_decay", "patch_size",
    "inference_session_version", "license",
)  # fmt: skip
"""What a server declares that changes with the model; the rest is chosen where it is started."""

_PROBE_SHAPE = (24, 20, 16)
_PROBE_AT = (12, 10, 8)

_NO_LICENCE = "!!MISSING!!"
"""What a server declares if it does not know the licence of its weights."""


class NnInteractiveBlackBox(VolumeBlackBox):
    """A model behind an nninteractive-server of version 2.

    ``capabilities.weights_sha256`` is the hash of what the server declares about its model and of its answer to a small
    fixed probe, see ``baps.blackbox.volumes.identity``; the address is not part of it. A model whose weights changed so
    little that the answer to the probe is nearly the same is not noticed. The probe is repeated in each new session. It
    holds no image of a patient and is not counted.

    The answer depends on the arguments alone, except that a server with autozoom refines large objects in parts that it
    chooses at random.

    Args:
        settings: settings of the server.
        identity: what ``weights_sha256`` must be, or "" for any.
        known: file of the models that are known, or None, see ``identify``.

    Raises:
        InputError: if the model has another identity, or the server another version.
        BapsError: if the server cannot be reached, has no free session, or does not speak the protocol.
    """

    def __init__(self, settings: VolumeRemoteSettings, identity: str = "", known: Path | None = None) -> None:
        super().__init__()
        self._settings = settings
        self._session = NnInteractiveSession(settings)
        self._image = ""
        """Hash of the image that the server has, or ""."""
        self._requested = False
        """Whether the prediction that is made now has been requested from the server."""
        try:
            described = self._session.describe()
            self._zooms = described.get("do_autozoom") is True and settings.autozoom
            self._patch = _patch(described.get("patch_size"))
            self._refines = described.get("supports_zero_shot_label_refinement") is True
            self._declared = {name: described.get(name) for name in _IDENTIFYING}
            self._capabilities = self._read(described)
            self._session.claim()
            self._probed = self._probe()
            digest = identify(self._declared, self._probed, known)
            self._capabilities = self._read(described, digest)
            if identity and identity.lower() != digest:
                raise InputError(
                    f"The model at {settings.address} has the identity {digest}, but {identity.lower()} was expected. "
                    "It is another model or version: restore the old one, or give the identity that you trust."
                )
        except BaseException:
            self._session.close()
            raise

    @property
    @override
    def capabilities(self) -> VolumeCapabilities:
        return self._capabilities

    @override
    def close(self) -> None:
        self._session.close()

    def _read(self, described: dict[str, Any], digest: str = "") -> VolumeCapabilities:
        version = _text(described.get("inference_session_version"))
        supported = described.get("supported_interactions")
        if not version or not isinstance(supported, dict):
            raise BapsError(
                f"The reply of {self._settings.address} does not follow the protocol of nninteractive-server 2: it "
                "does not say what its model understands. Check the address, and the log of the server."
            )
        if not version.startswith("2."):
            raise InputError(
                f"The server at {self._settings.address} has version {version} of nnInteractive's protocol. Install "
                "nninteractive 2 there."
            )
        kinds = {name: supported.get(name) is True for name in ("points", "bbox2d", "bbox3d", "scribble", "lasso")}
        if not any(kinds.values()):
            raise InputError(f"The model at {self._settings.address} understands no prompt. Serve another model there.")
        return VolumeCapabilities(
            name=f"nninteractive {version}",
            weights_sha256=digest,
            points=kinds["points"],
            boxes=kinds["bbox3d"],
            flat_boxes=kinds["bbox2d"] or kinds["bbox3d"],
            scribbles=kinds["scribble"],
            lassos=kinds["lasso"],
            negative=True,
            masks=described.get("supports_initial_label") is True,
            probabilities=False,
            licence="" if described.get("license") == _NO_LICENCE else _text(described.get("license")),
        )

    @override
    def _predict(
        self, voxels: NDArray[np.generic], spacing: Spacing, prompts: Sequence[VolumePrompt], mask: Mask | None
    ) -> NDArray[np.float32]:
        if voxels.min() == voxels.max():
            raise InputError("The volume has the same grey value everywhere, so there is nothing to segment.")
        if not prompts and not self._refines:
            raise InputError("This model corrects a mask only where a prompt says so. Add a click.")
        if voxels.dtype not in TYPES:  # For example of the other byte order.
            voxels = voxels.astype(np.float32)
        image = _hash(voxels, spacing)
        pause, deadline, lost = _MIN_PAUSE, float("inf"), False
        while True:
            self._requested = False
            try:
                self._prepare(voxels, spacing, image)
                return self._ask(prompts, mask, _shape(voxels)).astype(np.float32)
            except LeaseLostError as error:
                self._session.forget()
                if lost:
                    raise BapsError(
                        f"{error} It ended the new session as well. Start it with longer time-outs "
                        "(--idle-timeout-seconds, --liveness-timeout-seconds), and look at its log."
                    ) from error
                lost = True
                logger.warning("%s Beginning another.", error)
            except UnreachableError as error:
                lost, deadline = False, min(deadline, time.monotonic() + self._settings.retry_seconds)
                pause = self._wait(error, pause, deadline)
            self._image = ""
            if self._requested:
                self._count()

    def _wait(self, failure: UnreachableError, pause: float, deadline: float) -> float:
        """Wait until the server is ready, and return the next pause. No image is sent meanwhile."""
        logger.warning("%s Waiting for it.", failure)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise BapsError(
                    f"{failure} The server stayed away for {self._settings.retry_seconds:g} s. Start it, or fix the "
                    "network between; then try again. A training resumes from its log when it is started again."
                ) from failure
            wanted = min(failure.seconds, _MAX_RETRY_AFTER) if isinstance(failure, BusyError) else 0.0
            time.sleep(min(max(pause, wanted), left))
            pause = min(2 * pause, _MAX_PAUSE)
            try:
                if self._session.is_ready():
                    return pause
            except UnreachableError as error:
                failure = error

    def _prepare(self, voxels: NDArray[np.generic], spacing: Spacing, image: str) -> None:
        """Begin a session if there is none, and send the image if the server has another one."""
        if not self._session.claimed:
            self._image = ""
            self._session.claim()
            self._check_same()
        if self._image != image:
            self._image = ""
            self._session.set_image(voxels, spacing)
            # A cube of an adapter fits into the patch, and is answered the same each time without autozoom.
            fits = all(size <= room for size, room in zip(voxels.shape, self._patch, strict=True))
            self._session.post("/set_do_autozoom", {"do_autozoom": self._zooms and not fits})
            self._image = image
        self._session.post("/reset_interactions", {})

    def _check_same(self) -> None:
        """Check that the model is unchanged: neither a training nor an adapter may mix two models.

        Sessions end when a server is restarted, and it cannot change its weights otherwise.

        Raises:
            BapsError: If it has changed.
        """
        described = self._session.describe()
        declared = {name: described.get(name) for name in _IDENTIFYING}
        if declared != self._declared or not is_same_answer(self._probe(), self._probed):
            self._session.release()
            raise BapsError(
                f"The model at {self._settings.address} was replaced while it was in use. Restore the old one, or "
                "start this program again to work with the new one."
            )

    def _probe(self) -> Mask:
        """Return the model's answer to a fixed prompt in a fixed volume, without autozoom, which chooses at random."""
        i, j, k = np.ogrid[: _PROBE_SHAPE[0], : _PROBE_SHAPE[1], : _PROBE_SHAPE[2]]
        voxels = np.random.default_rng(0).normal(0, 1, _PROBE_SHAPE).astype(np.float32)
        voxels += 2 * (((i - 11) / 7) ** 2 + ((j - 9) / 5) ** 2 + ((k - 7) / 4) ** 2 < 1)
        low, high = (4, 4, _PROBE_AT[2]), (18, 14, _PROBE_AT[2] + 1)
        prompt: VolumePrompt = VolumePoint(_PROBE_AT, True)
        if not self._capabilities.points:
            prompt = VolumeBox(low, high, True)
        if not self._capabilities.understands(prompt):
            return np.zeros(_PROBE_SHAPE, bool)  # Of a model of scribbles and lassos, what it declares must do.
        self._session.set_image(voxels, (1.0, 1.0, 1.0))
        self._session.post("/set_do_autozoom", {"do_autozoom": False})
        answer = np.zeros(_PROBE_SHAPE, bool)
        self._add(prompt, answer, run=True)
        return answer

    def _ask(self, prompts: Sequence[VolumePrompt], mask: Mask | None, shape: Triple) -> Mask:
        """Send a mask and prompts to a session that has the image and no prompts, and return the answer."""
        answer = np.zeros(shape, bool)
        if mask is not None:
            answer[:] = mask
            self._requested = not prompts
            self._session.add("/add_initial_seg_interaction", {}, mask.astype(np.uint8), answer, run=not prompts)
        for number, prompt in enumerate(prompts, 1):
            self._requested = number == len(prompts)
            self._add(prompt, answer, run=self._requested)
        return answer

    def _add(self, prompt: VolumePrompt, answer: Mask, run: bool) -> None:
        meta: dict[str, Any] = {"include_interaction": prompt.include}
        if isinstance(prompt, VolumePoint):
            self._session.add("/add_point_interaction", {**meta, "coordinates": list(prompt.voxel)}, None, answer, run)
        elif isinstance(prompt, VolumeBox):
            self._session.add(
                "/add_bbox_interaction", {**meta, "bbox_coords": _ranges(prompt.low, prompt.high)}, None, answer, run
            )
        else:
            path = "/add_lasso_interaction" if prompt.lasso else "/add_scribble_interaction"
            end = np.add(prompt.low, prompt.shape).tolist()
            painted = prompt.unpack().astype(np.uint8)
            self._session.add(path, {**meta, "interaction_bbox": _ranges(prompt.low, end)}, painted, answer, run)


def licence_notice(licence: str) -> str:
    """Return what the operator must know about the licence of the weights.

    Args:
        licence: the licence, as an nninteractive-server declares it, or "".

    Returns:
        A sentence.
    """
    if not licence:
        return (
            "The server does not tell the licence of its weights. nnInteractive's published weights are CC BY-NC-SA "
            "4.0, for non-commercial use only."
        )
    if re.search(r"\bNC\b|non-?commercial", licence, re.IGNORECASE):
        return f"The licence of its weights is {licence}: they are for non-commercial use only."
    return f"The licence of its weights is {licence}."


def _ranges(low: Sequence[int], high: Sequence[int]) -> list[list[int]]:
    return [[int(first), int(end)] for first, end in zip(low, high, strict=True)]


def _shape(voxels: NDArray[np.generic]) -> Triple:
    i, j, k = voxels.shape
    return i, j, k


def _hash(voxels: NDArray[np.generic], spacing: Spacing) -> str:
    digest = hashlib.blake2b(f"{voxels.shape} {voxels.dtype} {spacing}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(voxels).data)
    return digest.hexdigest()


def _text(value: object) -> str:
    """Return a text that a server declares, short and without control characters, or "" if it is none."""
    return "".join(one for one in value if one.isprintable())[:100] if isinstance(value, str) else ""


def _patch(declared: object) -> tuple[int, ...]:
    """Return the size of the model's patch along each axis, or 0 if the server does not say it."""
    if isinstance(declared, list) and len(declared) == 3 and all(isinstance(size, int) for size in declared):
        return tuple(declared)
    return 0, 0, 0
