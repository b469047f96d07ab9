"""Load CLIP, ViT-MAE and DINO as frozen encoders, as in BAPS (Paranjape et al., MICCAI 2024).

They need the extra ``encoders``. Weights are read as tensors only, no code is downloaded, and files on this machine are
preferred to the hub.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

from baps.adapters.visual_prompt.encoder import Encoder
from baps.adapters.visual_prompt.model_files import find_model_file
from baps.blackbox.weights import load_weights, sha256
from baps.errors import BapsError, InputError, MissingExtraError

INPUT_SIZE = 224
"""Width and height of the images that the networks take, pixels."""

DEFAULT_SOURCES = {
    # The main branch has no safetensors; this is the hub's own conversion of the same weights.
    "clip": "openai/clip-vit-base-patch32@refs/pr/32",
    "vit_mae": "facebook/vit-mae-base",
}
"""Hub ids. DINO's ResNet-50 is not published on a hub by its authors."""

_DINO_URL = "https://dl.fbaipublicfiles.com/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth"

_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_WEIGHTS = "model.safetensors"


class FrozenNetwork(Encoder):
    """A network in eval mode and without gradients.

    Args:
        name: see ``load_encoder``.
        source: see ``load_encoder``.
        weights: path of the file that was loaded; its hash goes into the record.
        model: the network, which is moved to eval mode.
        length: number of features that ``embed`` returns.
        embed: maps the model and normalised images, (B, 3, 224, 224), to features, (B, length).
        scaling: mean and standard deviation of each channel that the model was trained with, for images in [0, 1].
    """

    def __init__(
        self,
        name: str,
        source: str,
        weights: Path,
        model: nn.Module,
        length: int,
        embed: Callable[[Any, torch.Tensor], torch.Tensor],
        scaling: tuple[tuple[float, ...], tuple[float, ...]],
    ) -> None:
        self.name, self.length = name, length
        self._source, self._sha256 = source, sha256(weights)
        self._network, self._compute_features = model.eval().requires_grad_(False), embed
        self._mean, self._std = (torch.tensor(value).view(1, 3, 1, 1) for value in scaling)

    @override
    def to_dict(self) -> dict[str, str]:
        return {"name": self.name, "source": self._source, "sha256": self._sha256}

    @torch.no_grad()
    @override
    def features(self, images: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(
            images / 255.0, (INPUT_SIZE, INPUT_SIZE), mode="bilinear", align_corners=False, antialias=True
        )
        return self._compute_features(self._network, (x - self._mean) / self._std)


def load_network(name: str, source: str) -> FrozenNetwork:
    """Load a network by its name.

    Args:
        name: ``clip``, ``vit_mae`` or ``dino``.
        source: see ``load_encoder``.

    Returns:
        The encoder.

    Raises:
        InputError: if the network has no default source and none is given.
        BapsError: if the extra is not installed, or the model cannot be found or read.
    """
    source = source or DEFAULT_SOURCES.get(name, "")
    if not source:
        raise InputError(
            f"The encoder {name!r} has no default source. Fetch {_DINO_URL} and give the path of the file, or the hub "
            f"id of a ResNet-50 with a {_WEIGHTS}."
        )
    local = Path(source).expanduser()
    return _load(name, str(local.resolve()) if local.exists() else source)


@lru_cache(maxsize=4)  # One network serves all adapters.
def _load(name: str, source: str) -> FrozenNetwork:
    return {"clip": _clip, "vit_mae": _vit_mae, "dino": _dino}[name](source)


def _clip(source: str) -> FrozenNetwork:
    """Load the projected image embedding of CLIP; ViT-B/32 has 512 values."""
    try:
        from transformers import CLIPVisionModelWithProjection
    except ImportError as error:
        raise _missing("clip") from error
    model, weights = _pretrained(CLIPVisionModelWithProjection, "clip", source)

    def embed(model: Any, x: torch.Tensor) -> torch.Tensor:
        return model(pixel_values=x).image_embeds

    return FrozenNetwork("clip", source, weights, model, model.config.projection_dim, embed, _CLIP)


def _vit_mae(source: str) -> FrozenNetwork:
    """Load the class token of ViT-MAE, without masking; the base model has 768 values."""
    try:
        from transformers import ViTMAEModel
    except ImportError as error:
        raise _missing("vit_mae") from error
    model, weights = _pretrained(ViTMAEModel, "vit_mae", source, mask_ratio=0.0)

    def embed(model: Any, x: torch.Tensor) -> torch.Tensor:
        # The model shuffles its patches by this noise even if it masks none; ascending noise keeps their order.
        noise = torch.arange(float(model.embeddings.patch_embeddings.num_patches)).expand(len(x), -1)
        return model(pixel_values=x, noise=noise).last_hidden_state[:, 0]

    return FrozenNetwork("vit_mae", source, weights, model, model.config.hidden_size, embed, _IMAGENET)


def _dino(source: str) -> FrozenNetwork:
    """Load the pooled features of DINO's ResNet-50, 2048 values."""
    try:
        import timm
    except ImportError as error:
        raise _missing("dino") from error
    weights = Path(source) if Path(source).is_file() else find_model_file(source, _WEIGHTS)
    state = {_plain(key): value for key, value in load_weights(weights)[0].items()}
    model: Any = timm.create_model("resnet50", pretrained=False, num_classes=0)
    try:
        model.load_state_dict({key: value for key, value in state.items() if not key.startswith(("fc.", "head."))})
    except RuntimeError as error:
        raise _other_weights("dino", weights, "a ResNet-50") from error

    def embed(model: Any, x: torch.Tensor) -> torch.Tensor:
        return model(x)

    return FrozenNetwork("dino", source, weights, model, model.num_features, embed, _IMAGENET)


def _plain(key: str) -> str:
    """Strip the prefixes that training code adds to a key."""
    return key.removeprefix("module.").removeprefix("backbone.")


def _pretrained(model_class: Any, name: str, source: str, **settings: float) -> tuple[Any, Path]:
    """Load a transformers model, and refuse weights that are incomplete; return it with the path of the weights."""
    from transformers.utils import logging

    # transformers warns about the parts that are not loaded (CLIP's text model, the MAE's decoder); we check below.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    find_model_file(source, "config.json")
    weights = find_model_file(source, _WEIGHTS)
    try:
        model, info = model_class.from_pretrained(
            weights.parent,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            dtype=torch.float32,
            **settings,
        )
    except Exception as error:  # transformers raises many types; each means that the files hold no such model.
        raise _other_weights(name, weights, model_class.__name__) from error
    if info["missing_keys"] or model.config.image_size != INPUT_SIZE:
        raise _other_weights(name, weights, f"{model_class.__name__} for images of {INPUT_SIZE} pixels")
    return model, weights


def _missing(name: str) -> MissingExtraError:
    return MissingExtraError(f"The encoder {name!r}", "encoders")


def _other_weights(name: str, weights: Path, expected: str) -> BapsError:
    return BapsError(
        f"{weights} does not hold the weights of {expected}, which the encoder {name!r} needs. Give the folder or the "
        "hub id of such a model."
    )
