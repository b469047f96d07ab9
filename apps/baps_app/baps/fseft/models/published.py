"""The published checkpoints, by the names that FSEFT gives them.

None of the files was at hand: the names of their tensors are taken from the public code that wrote or reads them.

- ``fseft`` (Silva-Rodriguez et al.): Swin UNETR, its head ``classifier``; as its pre-training code names them.
- ``suprem_swinunetr``, ``suprem_unet`` (Li et al., ICLR 2024), ``clipdriven`` (Liu et al., ICCV 2023): below ``net``,
  ``module.backbone.`` and then the network's names, as SuPreM's fine-tuning code reads them. Beside it lie the parts of
  a head that is made anew for each image, from its coarsest features and an embedding of the class: it is no linear
  head, and is left out. So these models know no organ by name.
- ``btcv`` (Tang et al., CVPR 2022): below ``state_dict``, MONAI's own names, its head ``out.conv.conv``, as
  CLIP-driven's code reads it. That the background comes first, and then the organs in the data set's order, is what
  MONAI's training code makes; the file was not asked.
- ``selfsup`` (Tang et al., CVPR 2022): ``model_swinvit.pt``, the encoder alone, below ``state_dict`` with ``module.``
  and ``mlp.fc1`` for MONAI's ``mlp.linear1``, as MONAI's ``SwinUNETR.load_from`` reads it. FSEFT's own list gives
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
"""The order of BTCV, in the names of TotalSegmentator."""

FSEFT_CLASSES = (
    *_ABDOMEN, "duodenum", "urinary_bladder", "prostate_or_uterus", "liver_tumor", "kidney_tumor", "kidney_cyst",
    "celiac_trunk", "lung_right", "lung_left", "bone", "brain", "lung_tumor", "pancreas_tumor", "hepatic_vessel",
    "hepatic_vessel_tumor", "colon_tumor",
)  # fmt: skip
"""The 29 structures of FSEFT's foundation model."""


@dataclass(frozen=True)
class _Checkpoint:
    """What a published file holds.

    Attributes:
        unet: a U-Net rather than a Swin UNETR.
        classes: of its linear head.
        softmax: the head gives the background too, first, and one softmax over all.
        encoder_only: the rest is to begin at random.
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
"""Names that ``load_foundation_model`` knows."""

_PATCHES = "body.swinViT.patch_embed.proj.weight"


def load_foundation_model(name: str, weights: Path, sha256: str = "") -> tuple[FoundationModel, str]:
    """A published foundation model, on the CPU, and the SHA-256 of its file.

    Args:
        name: one of ``PUBLISHED``.
        weights: the checkpoint, .safetensors or .pth or .pt that holds tensors alone.
        sha256: the hash that it must have, or "".

    Raises:
        InputError: if there is no such name, or the file cannot be read or holds something else.
    """
    if name not in _CHECKPOINTS:
        raise InputError(f"There is no foundation model named {name!r}. Known ones: {', '.join(PUBLISHED)}.")
    state, digest = load_weights(weights, sha256)
    try:
        return foundation_model_of(name, state), digest
    except InputError as error:
        raise InputError(f"{weights}: {error}") from error


def foundation_model_of(name: str, state: Mapping[str, torch.Tensor], seed: int = 0) -> FoundationModel:
    """The model of a state dict with published names.

    A softmax head becomes one of sigmoids: each class against the background, ``w_k - w_0``, which is the softmax of
    those two alone.

    Args:
        name: one of ``PUBLISHED``.
        state: tensors by the names in the file.
        seed: of what the file does not hold.

    Raises:
        InputError: if it is another network, or tensors are missing or have another shape.
    """
    checkpoint = _CHECKPOINTS[name]
    found = {_our_name(key): value for key, value in state.items()}
    _check_kind(name, checkpoint, found)
    ours = dict(found)
    if checkpoint.softmax:
        ours |= {key: value[1:] - value[:1] for key, value in found.items() if key.startswith("head.")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if checkpoint.unet:
            model = build_unet(checkpoint.classes)
        else:
            model = build_swin_unetr(checkpoint.classes, len(found[_PATCHES]))
    # Places in a table, which follow from the window's size.
    learned = {key: value for key, value in model.state_dict().items() if not key.endswith("relative_position_index")}
    if checkpoint.encoder_only:
        learned = {key: value for key, value in learned.items() if key.startswith("body.swinViT.")}
    wrong = [key for key, value in learned.items() if key not in ours or ours[key].shape != value.shape]
    if wrong:
        raise InputError(
            f"{len(wrong)} of the {len(learned)} tensors of {name} are missing or have another shape, the first being "
            f"{wrong[0]}. {_remedy(found)}"
        )
    model.load_state_dict({key: ours[key].float() for key in learned}, strict=False)
    return model.eval()


def _our_name(key: str) -> str:
    """Of a tensor, from its published name."""
    key = re.sub(r"^(module\.)?(backbone\.)?", "", key)
    key = re.sub(r"^(swin_?vit\.)?(?=(patch_embed|layers[1-4])\.)", "swinViT.", key, flags=re.IGNORECASE)
    key = key.replace(".mlp.fc", ".mlp.linear")
    head = re.sub(r"^(classifier|out\.conv\.conv)\.", "head.", key)
    return head if head != key else f"body.{key}"


def _check_kind(name: str, checkpoint: _Checkpoint, found: Mapping[str, torch.Tensor]) -> None:
    unet, swin = _holds(found, "body.down_tr64."), _PATCHES in found
    if unet == swin or unet != checkpoint.unet:
        kind = "a U-Net" if unet else "a Swin UNETR" if swin else "another network"
        wanted = "a U-Net" if checkpoint.unet else "a Swin UNETR"
        raise InputError(f"It holds {kind}, and {name} is {wanted}. {_remedy(found)}")
    if swin and len(found[_PATCHES]) % 12:
        raise InputError(f"Its Swin UNETR has {len(found[_PATCHES])} features, which must be a multiple of 12.")
    if checkpoint.encoder_only and _holds(found, "body.decoder"):
        raise InputError(f"It holds a decoder too, and {name} is an encoder alone. {_remedy(found)}")


def _remedy(found: Mapping[str, torch.Tensor]) -> str:
    """Which names would do for what a file holds."""
    if _holds(found, "body.down_tr64."):
        names = ["suprem_unet"]
    elif _PATCHES not in found:
        return f"Give a checkpoint of one of {', '.join(PUBLISHED)}."
    elif not _holds(found, "body.decoder"):
        names = ["selfsup"]
    elif "head.weight" in found:
        outputs = len(found["head.weight"])
        names = [name for name, c in _CHECKPOINTS.items() if c.classes and outputs == len(c.classes) + c.softmax]
    else:
        names = ["suprem_swinunetr", "clipdriven"]
    return f"It could be {' or '.join(names)}." if names else "Its head has another number of classes."


def _holds(found: Mapping[str, torch.Tensor], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in found)
