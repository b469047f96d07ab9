"""Load a black box by its name."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam

from baps.blackbox.bundled_model import build_bundled_model
from baps.blackbox.choices import check_black_box
from baps.blackbox.device import usable_devices
from baps.blackbox.interface import BlackBox
from baps.blackbox.medsam import MedSamBlackBox
from baps.blackbox.remote.client import RemoteBlackBox
from baps.blackbox.remote.settings import RemoteSettings
from baps.blackbox.replica_process import ReplicaProcess
from baps.blackbox.replicas import ReplicatedBlackBox
from baps.blackbox.sam import SamBlackBox
from baps.blackbox.weights import check_sha256, load_weights
from baps.errors import InputError, MissingExtraError

logger = logging.getLogger(__name__)

BUNDLED_WEIGHTS = Path(__file__).parent / "bundled" / "bundled.safetensors"
"""Path of the weights of the bundled model."""

_NOT_MAINTAINED = (
    "which no maintained package loads. Use SAM, MedSAM, SAM-HQ, SAM 2 or SAM 3, or serve it on another machine "
    "(black_box=remote)."
)
_OTHER_FORMAT = "in the format of its authors. Give the files that transformers saves, with black_box={}."
_RELATIVES = {
    "mask_decoder.hf_token": ("SAM-HQ", _OTHER_FORMAT.format("sam_hq")),
    "image_encoder.patch_embed.seq.": ("MobileSAM", _NOT_MAINTAINED),
    "mask_decoder.final_output_upscaling_layers.": ("EfficientSAM", _NOT_MAINTAINED),
    "detector.backbone.": ("SAM 3", _OTHER_FORMAT.format("sam3")),
}
"""Models that descend from SAM and have other networks: part of the name of one of their tensors, and what to do."""

_SAM_WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}


def load_black_box(
    name: str = "bundled",
    weights: Path | None = None,
    sha256: str = "",
    device: str = "auto",
    remote: RemoteSettings | None = None,
) -> BlackBox:
    """Load a black box.

    Args:
        name: ``bundled``, ``sam`` for a SAM checkpoint (vit_b, vit_l or vit_h, recognised by the weights), ``medsam``
            for a MedSAM checkpoint, which has the same tensors but other images, ``sam2`` for a checkpoint of SAM 2 or
            2.1 (of any size), ``sam_hq`` or ``sam3`` for the files that transformers saves of them, or ``remote`` for a
            model on another machine.
        weights: path of the checkpoint; required for all but ``bundled`` and ``remote``.
        sha256: hash that the checkpoint must have, or "" for the published one if the file name is known. For a remote
            model, the identity that it must have.
        device: ``auto``, ``cpu``, ``cuda``, or a numbered GPU such as ``cuda:1``. Several, separated by commas, are one
            replica each, in a process of its own (``cuda:0,cuda:1``, or ``cpu,cpu`` on two cores); what is interactive
            runs on the first, in this process. A remote model has its own.
        remote: settings of a remote model; required for ``remote``.

    Returns:
        The black box.

    Raises:
        InputError: on an unknown name or device, or weights or a remote model that cannot be used.
        BapsError: if a remote model is not there, or the packages of an extra are not installed.
    """
    check_black_box(name)
    if name == "remote":
        if remote is None:
            raise InputError("The black box remote needs an address: give one such as http://host:8000/model.")
        if weights is not None:
            raise InputError(f"The black box remote has its weights on its server. Do not name {weights}.")
        return RemoteBlackBox(remote, sha256)
    devices = usable_devices(device)
    model = _load(name, weights, sha256, devices[0])
    if len(devices) == 1:
        return model
    digest = model.capabilities.weights_sha256
    return ReplicatedBlackBox(
        model,
        [ReplicaProcess(f"{number} on {one}", name, weights, digest, one) for number, one in enumerate(devices, 1)],
    )


def _load(name: str, weights: Path | None, sha256: str, device: str) -> BlackBox:
    if name == "bundled":
        return _bundled(weights or BUNDLED_WEIGHTS, sha256, device)
    if weights is None:
        raise InputError(f"The black box {name} needs weights: give the path of a checkpoint of it.")
    if name in ("sam_hq", "sam3"):
        return _transformers(name, weights, sha256, device)
    return _sam2(weights, sha256, device) if name == "sam2" else _sam(name, weights, sha256, device)


def bundled_network(weights: Path = BUNDLED_WEIGHTS, sha256: str = "") -> tuple[Sam, str]:
    """Load the network of the bundled model.

    Args:
        weights: path of the weights; their record lies beside them, as JSON.
        sha256: hash that the weights must have, or "" for any.

    Returns:
        The network, and the SHA-256 of its weights.

    Raises:
        InputError: if the weights cannot be used.
    """
    state, digest = load_weights(weights, sha256)
    try:
        record = json.loads(weights.with_suffix(".json").read_text())
        model = build_bundled_model(record["input_side"])
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(
            f"{weights} does not hold the bundled model with its record ({weights.stem}.json) beside it: {error}"
        ) from error
    return model, digest


def _bundled(weights: Path, sha256: str, device: str) -> BlackBox:
    model, digest = bundled_network(weights, sha256)
    model = model.to(device, memory_format=torch.channels_last)
    return SamBlackBox(model, "bundled", digest, batch_size=16, preprocessing="canvas")


def _sam(name: str, weights: Path, sha256: str, device: str) -> BlackBox:
    state, digest = load_weights(weights, sha256)
    _check_readable(weights, state)
    width = state.get("image_encoder.patch_embed.proj.weight", torch.empty(0)).shape[:1]
    variant = _SAM_WIDTHS.get(width[0] if width else 0)
    if variant is None:
        raise InputError(f"{weights} is not a SAM checkpoint (vit_b, vit_l or vit_h): its image encoder is missing.")
    model = sam_model_registry[variant]()
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{weights} looks like SAM {variant}, but its tensors do not fit: {error}") from error
    model, batch_size = model.to(device), 1 if device == "cpu" else 8
    if name == "sam" and "medsam" in weights.name.lower():  # Earlier releases had no black box medsam.
        logger.warning(
            "%s is loaded as MedSAM because of its name. Declare it with black_box=medsam; if it is a SAM, rename the "
            "file.",
            weights.name,
        )
        name = "medsam"
    if name == "medsam":
        return MedSamBlackBox(model, f"medsam_{variant}", digest, batch_size=batch_size)
    return SamBlackBox(model, f"sam_{variant}", digest, batch_size=batch_size)


def _check_readable(weights: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Refuse the checkpoints of SAM's relatives by name, which would otherwise be reported by their tensors.

    Raises:
        InputError: if the checkpoint is of a relative that cannot be loaded.
    """
    for key, (relative, remedy) in _RELATIVES.items():
        if any(key in tensor for tensor in state):
            raise InputError(f"{weights} is a checkpoint of {relative}, {remedy}")


def _sam2(weights: Path, sha256: str, device: str) -> BlackBox:
    try:
        from baps.blackbox.sam2 import Sam2BlackBox, sam2_from_state
    except ImportError as error:
        raise MissingExtraError("The black box sam2", "sam2") from error
    state, digest = load_weights(weights, sha256)
    _check_readable(weights, state)
    try:
        model, name = sam2_from_state(state)
    except InputError as error:
        raise InputError(f"{weights}: {error}") from error
    return Sam2BlackBox(model.to(device), name, digest, batch_size=1 if device == "cpu" else 8)


def _transformers(name: str, weights: Path, sha256: str, device: str) -> BlackBox:
    try:
        from baps.blackbox.transformers_sam import TransformersBlackBox, read_transformers_model
    except ImportError as error:
        raise MissingExtraError(f"The black box {name}", "encoders") from error
    digest = check_sha256(weights, sha256)
    model = read_transformers_model(name, weights)
    return TransformersBlackBox(model.to(device), name, digest, batch_size=1 if device == "cpu" else 8)
