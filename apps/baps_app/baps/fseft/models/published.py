"""Load published checkpoints, by the names that FSEFT gives them.

None of the files was available: the names of their tensors are taken from the public code that wrote or reads them.

- ``fseft`` (Silva-Rodriguez et al.): Swin UNETR with the head ``classifier``, as its pre-training code names them.
- ``suprem_swinunetr``, ``suprem_unet`` (Li et al., ICLR 2024), ``clipdriven`` (Liu et al., ICCV 2023): below ``net``,
  ``module.backbone.`` followed by the network's names, as SuPreM's fine-tuning code reads them. The files also hold a
  head that is generated for each image, from its coarsest features and an embedding of the class; it is not a linear
  head and is ignored, so these models know no organ by name.
- ``btcv`` (Tang et al., CVPR 2022): below ``state_dict``, MONAI's own names with the head ``out.conv.conv``, as
  CLIP-driven's code reads it. That the background comes first, followed by the organs in the data set's order, is what
  MONAI's training code does; it was not verified on the file.
- ``selfsup`` (Tang et al., CVPR 2022): ``model_swinvit.pt``, the encoder only, below ``state_dict`` with ``module.``
  and ``mlp.fc1`` for MONAI's ``mlp.linear1``, as MONAI's ``SwinUNETR.load_from`` reads it. FSEFT's own list names
  another file here, which is that of ``btcv``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from baps.blackbox.weights import load_weights
from baps.errors import InputError
from baps.fseft.models.foundation import FoundationModel
from baps.fseft.models.swin_unetr import build_swin_unetr
from baps.fseft.models.unet import build_unet

_ABDOMEN = (
    "spleen", "kidney_right", "kidney_left", "gallbladder", "esophagus", "liver", "stomach", "aorta",
    "inferior_vena_cava", "portal_vein_and_splenic_vein", "pancreas", "adrenal_gland_right", "adrenal_gland_left",
)  # fmt: skip
"""The classes of BTCV in order, with the names of TotalSegmentator."""

FSEFT_CLASSES = (
    *_ABDOMEN, "duodenum", "urinary_bladder", "prostate_or_uterus", "liver_tumor", "kidney_tumor", "kidney_cyst",
    "celiac_trunk", "lung_right", "lung_left", "bone", "brain", "lung_tumor", "pancreas_tumor", "hepatic_vessel",
    "hepatic_vessel_tumor", "colon_tumor",
)  # fmt: skip
"""The 29 structures of FSEFT's foundation model."""


@dataclass(frozen=True)
class _Checkpoint:
    """The contents of a published file.

    Attributes:
        unet: whether it is a U-Net rather than a Swin UNETR.
        classes: classes of its linear head.
        softmax: whether the head has the background as its first output, and one softmax over all.
        encoder_only: whether all but the encoder starts at random.
    """

    unet: bool = False
    classes: tuple[str, ...] = ()
    softmax: bool = False
    encoder_only: bool = False


_CHECKPOINTS = {
    "fseft": _Checkpoint(classes=FSEFT_CLASSES),
    "suprem_swinunetr": _Checkpoint(),
    "suprem_unet": _Checkpoint(unet=True),
    "clipdriven": _Checkpoint(),
    "btcv": _Checkpoint(classes=_ABDOMEN, softmax=True),
    "selfsup": _Checkpoint(encoder_only=True),
}

PUBLISHED = tuple(_CHECKPOINTS)
"""Names that ``load_foundation_model`` accepts."""

_PATCHES = "body.swinViT.patch_embed.proj.weight"


def load_foundation_model(name: str, weights: Path, sha256: str = "") -> tuple[FoundationModel, str]:
    """Load a published foundation model.

    Args:
        name: one of ``PUBLISHED``.
        weights: the checkpoint, .safetensors, or .pth or .pt that holds tensors only.
        sha256: expected SHA-256 of the file, or "" for any.

    Returns:
        The model, on the CPU, and the SHA-256 of its file.

    Raises:
        InputError: if there is no such name, or the file cannot be read or holds something else.
    """
    if name not in _CHECKPOINTS:
        raise InputError(f"There is no foundation model named {name!r}. Known ones: {', '.join(PUBLISHED)}.")
    state, digest = load_weights(weights, sha256)
    try:
        return build_from_state(name, state), digest
    except InputError as error:
        raise InputError(f"{weights}: {error}") from error


def build_from_state(name: str, state: Mapping[str, torch.Tensor], seed: int = 0) -> FoundationModel:
    """Build the model of a state dict with published names.

    A softmax head is converted to sigmoids: each class against the background, ``w_k - w_0``, which is the softmax of
    those two alone.

    Args:
        name: one of ``PUBLISHED``.
        state: tensors by the names in the file.
        seed: seed of the weights that the file does not hold.

    Returns:
        The model, on the CPU.

    Raises:
        InputError: if it is another network, or tensors are missing or have another shape.
    """
    checkpoint = _CHECKPOINTS[name]
    tensors = {_rename_key(key): value for key, value in state.items()}
    _check_kind(name, checkpoint, tensors)
    renamed = dict(tensors)
    if checkpoint.softmax:
        renamed |= {key: value[1:] - value[:1] for key, value in tensors.items() if key.startswith("head.")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if checkpoint.unet:
            model = build_unet(checkpoint.classes)
        else:
            model = build_swin_unetr(checkpoint.classes, len(tensors[_PATCHES]))
    # Indices into a table, which follow from the window's size.
    parameters = {
        key: value for key, value in model.state_dict().items() if not key.endswith("relative_position_index")
    }
    if checkpoint.encoder_only:
        parameters = {key: value for key, value in parameters.items() if key.startswith("body.swinViT.")}
    missing = [key for key, value in parameters.items() if key not in renamed or renamed[key].shape != value.shape]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(parameters)} tensors of {name} are missing or have another shape, the first "
            f"being {missing[0]}. {_remedy(tensors)}"
        )
    model.load_state_dict({key: renamed[key].float() for key in parameters}, strict=False)
    return model.eval()


def _rename_key(key: str) -> str:
    """Convert the published name of a tensor to ours."""
    key = re.sub(r"^(module\.)?(backbone\.)?", "", key)
    key = re.sub(r"^(swin_?vit\.)?(?=(patch_embed|layers[1-4])\.)", "swinViT.", key, flags=re.IGNORECASE)
    key = key.replace(".mlp.fc", ".mlp.linear")
    head = re.sub(r"^(classifier|out\.conv\.conv)\.", "head.", key)
    return head if head != key else f"body.{key}"


def _check_kind(name: str, checkpoint: _Checkpoint, tensors: Mapping[str, torch.Tensor]) -> None:
    is_unet, is_swin = _has_prefix(tensors, "body.down_tr64."), _PATCHES in tensors
    if is_unet == is_swin or is_unet != checkpoint.unet:
        kind = "a U-Net" if is_unet else "a Swin UNETR" if is_swin else "another network"
        expected = "a U-Net" if checkpoint.unet else "a Swin UNETR"
        raise InputError(f"It holds {kind}, and {name} is {expected}. {_remedy(tensors)}")
    if is_swin and len(tensors[_PATCHES]) % 12:
        raise InputError(f"Its Swin UNETR has {len(tensors[_PATCHES])} features, which must be a multiple of 12.")
    if checkpoint.encoder_only and _has_prefix(tensors, "body.decoder"):
        raise InputError(f"It holds a decoder too, and {name} is an encoder alone. {_remedy(tensors)}")


def _remedy(tensors: Mapping[str, torch.Tensor]) -> str:
    """Suggest the names that fit what a file holds."""
    if _has_prefix(tensors, "body.down_tr64."):
        names = ["suprem_unet"]
    elif _PATCHES not in tensors:
        return f"Give a checkpoint of one of {', '.join(PUBLISHED)}."
    elif not _has_prefix(tensors, "body.decoder"):
        names = ["selfsup"]
    elif "head.weight" in tensors:
        outputs = len(tensors["head.weight"])
        names = [name for name, c in _CHECKPOINTS.items() if c.classes and outputs == len(c.classes) + c.softmax]
    else:
        names = ["suprem_swinunetr", "clipdriven"]
    return f"It could be {' or '.join(names)}." if names else "Its head has another number of classes."


def _has_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in tensors)
