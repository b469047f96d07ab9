"""Load published checkpoints, by the names that FSEFT gives them.

None of the files was available: the names of their tensors, the order of their classes and what their images must be
like are taken from the public code that wrote or reads them.

- ``fseft`` (Silva-Rodriguez et al.): Swin UNETR with the head ``classifier``, as its pre-training code names them.
- ``suprem_swinunetr``, ``suprem_unet`` (Li et al., ICLR 2024), ``clipdriven`` (Liu et al., ICCV 2023): below ``net``,
  ``module.backbone.`` followed by the network's names, and a text-driven head. SuPreM's training code writes 25 classes
  (AbdomenAtlas 1.1) or 9 (1.0) in the order of their folders; its published files of 2,100 volumes are read with the 32
  classes of CLIP-driven, in another order. CLIP-driven's test code also reads files without ``backbone.``.
- ``btcv`` (Tang et al., CVPR 2022): below ``state_dict``, MONAI's own names with the head ``out.conv.conv``, as its
  training code writes it, with its accuracy as a numpy scalar. The background comes first, followed by the organs in
  the data set's order. It was trained on voxels of 1.5 x 1.5 x 2 mm, although FSEFT uses it at 1.5 mm.
- ``selfsup`` (Tang et al., CVPR 2022): ``model_swinvit.pt``, the encoder only, below ``state_dict`` with ``module.``
  and ``mlp.fc1`` for MONAI's ``mlp.linear1``, as MONAI's ``SwinUNETR.load_from`` reads it. FSEFT's own list names
  another file here, which is that of ``btcv``. The window is that of the papers that adapt it; its pre-training had one
  of -1000 to 1000 HU.
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

UNIVERSAL_CLASSES = (
    *_ABDOMEN, "duodenum", "hepatic_vessel", "lung_right", "lung_left", "colon", "intestine", "rectum",
    "urinary_bladder", "prostate", "femur_left", "femur_right", "celiac_trunk", "kidney_tumor", "liver_tumor",
    "pancreas_tumor", "hepatic_vessel_tumor", "lung_tumor", "colon_tumor", "kidney_cyst",
)  # fmt: skip
"""The 32 classes of CLIP-driven's Universal Model."""

_ATLAS_1_0_CLASSES = (
    "aorta", "gallbladder", "kidney_left", "kidney_right", "liver", "pancreas", "inferior_vena_cava", "spleen",
    "stomach",
)  # fmt: skip
"""The 9 classes of AbdomenAtlas 1.0."""

ATLAS_CLASSES = (
    *_ATLAS_1_0_CLASSES, "adrenal_gland_left", "adrenal_gland_right", "urinary_bladder", "celiac_trunk", "colon",
    "duodenum", "esophagus", "femur_left", "femur_right", "hepatic_vessel", "intestine", "lung_left", "lung_right",
    "portal_vein_and_splenic_vein", "prostate", "rectum",
)  # fmt: skip
"""The 25 classes of AbdomenAtlas 1.1, which SuPreM is trained on."""


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a published file.

    Attributes:
        unet: whether it is a U-Net rather than a Swin UNETR.
        classes: classes of its linear head.
        text_classes: classes of its text-driven head, by the training that wrote it; their numbers differ. A file that
            holds the backbone alone has none.
        softmax: whether the head has the background as its first output, and one softmax over all.
        encoder_only: whether all but the encoder starts at random.
        spacing: size of the voxels that it was trained on, mm, along each axis of the orientation.
        window: Hounsfield units that are scaled to 0 and 1.
        orientation: where the axes of an image run to.
    """

    unet: bool = False
    classes: tuple[str, ...] = ()
    text_classes: tuple[tuple[str, ...], ...] = ()
    softmax: bool = False
    encoder_only: bool = False
    spacing: tuple[float, float, float] = (1.5, 1.5, 1.5)
    window: tuple[float, float] = (-175.0, 250.0)
    orientation: str = "RAS"


_SUPREM = (ATLAS_CLASSES, UNIVERSAL_CLASSES, _ATLAS_1_0_CLASSES)

CHECKPOINTS = {
    "fseft": Checkpoint(classes=FSEFT_CLASSES),
    "suprem_swinunetr": Checkpoint(text_classes=_SUPREM),
    "suprem_unet": Checkpoint(unet=True, text_classes=_SUPREM),
    "clipdriven": Checkpoint(text_classes=(UNIVERSAL_CLASSES,)),
    "btcv": Checkpoint(classes=_ABDOMEN, softmax=True, spacing=(1.5, 1.5, 2.0)),
    "selfsup": Checkpoint(encoder_only=True),
}
"""Published files by name."""

PUBLISHED = tuple(CHECKPOINTS)
"""Names that ``load_foundation_model`` accepts."""

_TEXT_DRIVEN = ("organ_embedding", "text_to_vision", "GAP", "controller", "precls_conv")
"""Names of the text-driven head's modules."""

_MAX_FEATURES = 96
_PATCHES = "body.swinViT.patch_embed.proj.weight"


def load_foundation_model(name: str, weights: Path, sha256: str = "") -> tuple[FoundationModel, str]:
    """Load a published foundation model.

    Args:
        name: one of ``PUBLISHED``.
        weights: the checkpoint, .safetensors, or .pth or .pt that holds tensors and numbers only.
        sha256: expected SHA-256 of the file, or "" for any.

    Returns:
        The model, on the CPU, and the SHA-256 of its file.

    Raises:
        InputError: if there is no such name, or the file cannot be read or holds something else.
    """
    if name not in CHECKPOINTS:
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
    checkpoint = CHECKPOINTS[name]
    tensors = {_rename_key(key): value for key, value in state.items()}
    _check_kind(name, checkpoint, tensors)
    text_driven = bool(checkpoint.text_classes) and any(_in_text_driven_head(key) for key in tensors)
    classes = _text_classes(name, checkpoint, tensors) if text_driven else checkpoint.classes
    renamed = dict(tensors)
    if checkpoint.softmax:
        renamed |= {key: value[1:] - value[:1] for key, value in tensors.items() if key.startswith("head.")}
    if text_driven:
        renamed = {
            key if _in_text_driven_head(key) else key.replace("body.", "body.backbone.", 1): value
            for key, value in tensors.items()
        }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if checkpoint.unet:
            model = build_unet(classes, text_driven=text_driven)
        else:
            features = len(tensors[_PATCHES])
            model = build_swin_unetr(classes, features, published=True, text_driven=text_driven)
    # Indices into a table, which follow from the window's size.
    parameters = {
        key: value for key, value in model.state_dict().items() if not key.endswith("relative_position_index")
    }
    if checkpoint.encoder_only:
        parameters = {key: value for key, value in parameters.items() if key.startswith("body.swinViT.")}
    if text_driven:  # Its linear head only selects the logits.
        parameters = {key: value for key, value in parameters.items() if not key.startswith("head.")}
    missing = [key for key, value in parameters.items() if key not in renamed or renamed[key].shape != value.shape]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(parameters)} tensors of {name} are missing or have another shape, the first "
            f"being {missing[0]}. {_remedy(name, tensors)}"
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


def _in_text_driven_head(key: str) -> bool:
    return key.split(".")[1] in _TEXT_DRIVEN


def _check_kind(name: str, checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor]) -> None:
    is_unet, is_swin = _has_prefix(tensors, "body.down_tr64."), _PATCHES in tensors
    if is_unet == is_swin or is_unet != checkpoint.unet:
        kind = "a U-Net" if is_unet else "a Swin UNETR" if is_swin else "another network"
        expected = "a U-Net" if checkpoint.unet else "a Swin UNETR"
        raise InputError(f"It holds {kind}, and {name} is {expected}. {_remedy(name, tensors)}")
    if is_swin and (len(tensors[_PATCHES]) % 12 or not 0 < len(tensors[_PATCHES]) <= _MAX_FEATURES):
        raise InputError(
            f"Its Swin UNETR has {len(tensors[_PATCHES])} features, which must be a multiple of 12 up to "
            f"{_MAX_FEATURES}. {_FETCH_AGAIN}"
        )
    if checkpoint.encoder_only and _has_prefix(tensors, "body.decoder"):
        raise InputError(f"It holds a decoder too, and {name} is an encoder alone. {_remedy(name, tensors)}")


def _text_classes(name: str, checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Find the names of the classes of a text-driven head by their number."""
    if not checkpoint.unet and len(tensors[_PATCHES]) % 48:
        raise InputError(
            f"Its Swin UNETR has {len(tensors[_PATCHES])} features, which must be a multiple of 48 with a text-driven "
            f"head. {_FETCH_AGAIN}"
        )
    if "body.organ_embedding" not in tensors:
        raise InputError(
            f"Its text-driven head has no embeddings of its classes' names (organ_embedding), so it is not {name}, "
            f"which is trained with them. {_BACKBONE_ALONE}"
        )
    number = len(tensors["body.organ_embedding"])
    for classes in checkpoint.text_classes:
        if len(classes) == number:
            return classes
    raise InputError(
        f"Its head has {number} classes, and {name} has names for {_numbers(checkpoint)}, so its organs would get "
        f"wrong names. {_remedy(name, tensors)}"
    )


_FETCH_AGAIN = "Fetch the published checkpoint again."
_BACKBONE_ALONE = "Give the published checkpoint, or save the tensors below backbone alone and train the organs."


def _remedy(name: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Suggest the names that fit what a file holds."""
    is_unet = _has_prefix(tensors, "body.down_tr64.")
    if not is_unet and _PATCHES not in tensors:
        return f"Give a checkpoint of one of {', '.join(PUBLISHED)}."
    same_network = {key: c for key, c in CHECKPOINTS.items() if c.unet == is_unet}
    if not is_unet and not _has_prefix(tensors, "body.decoder"):
        names = ["selfsup"]
    elif "body.organ_embedding" in tensors:
        outputs = len(tensors["body.organ_embedding"])
        names = [key for key, c in same_network.items() if outputs in map(len, c.text_classes)]
    elif "head.weight" in tensors:
        outputs = len(tensors["head.weight"])
        names = [key for key, c in same_network.items() if c.classes and outputs == len(c.classes) + c.softmax]
    else:
        names = [key for key, c in same_network.items() if c.text_classes]
    if name in names:
        return _FETCH_AGAIN
    if names:
        return f"It could be {' or '.join(names)}."
    if "head.weight" not in tensors:
        return _BACKBONE_ALONE
    return (
        f"Its head has {len(tensors['head.weight'])} outputs, and {name} has names for {_numbers(CHECKPOINTS[name])} "
        "classes. Give the published checkpoint."
    )


def _numbers(checkpoint: Checkpoint) -> str:
    numbers = sorted(map(len, checkpoint.text_classes)) or [len(checkpoint.classes)]
    return " or ".join(map(str, numbers))


def _has_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in tensors)
