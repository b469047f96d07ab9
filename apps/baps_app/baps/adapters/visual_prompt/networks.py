"""CLIP, ViT-MAE and DINO as frozen encoders, as in BAPS (Paranjape et al., MICCAI 2024).

They come with the extra ``encoders``. Weights are tensors alone, no code is fetched, and what is on this machine is
taken before the hub is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from baps.adapters.visual_prompt.encoder import Encoder
from baps.adapters.visual_prompt.model_files import model_file
from baps.blackbox.weights import load_weights, sha256
from baps.errors import BapsError, InputError, MissingExtraError

SIDE = 224

DEFAULT_SOURCES = {
    # Its main branch has no safetensors; this is the hub's own conversion of the same weights.
    "clip": "openai/clip-vit-base-patch32@refs/pr/32",
    "vit_mae": "facebook/vit-mae-base",
}
"""Hub ids. DINO's ResNet-50 is published on no hub by its authors."""

_DINO_URL = "https://dl.fbaipublicfiles.com/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth"

_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_WEIGHTS = "model.safetensors"


class FrozenNetwork(Encoder):
    """A network in eval mode and without gradients.

    Args:
        name, source: as ``load_encoder`` takes them.
        weights: the file that was loaded; its hash goes into the record.
        model: moved to eval mode.
        length: of what ``embed`` returns.
        embed: the model and normalised images (B, 3, 224, 224) to features (B, length).
        scaling: mean and standard deviation of each channel, of images in [0, 1], that the model was trained with.
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
        self._network, self._summary = model.eval().requires_grad_(False), embed
        self._mean, self._std = (torch.tensor(value).view(1, 3, 1, 1) for value in scaling)

    def record(self) -> dict[str, str]:
        return {"name": self.name, "source": self._source, "sha256": self._sha256}

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(images / 255.0, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        return self._summary(self._network, (x - self._mean) / self._std)


def load_network(name: str, source: str) -> FrozenNetwork:
    """See ``load_encoder``."""
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
    """The projected image embedding; ViT-B/32: 512 values."""
    try:
        from transformers import CLIPVisionModelWithProjection
    except ImportError as error:
        raise _missing("clip") from error
    model, weights = _pretrained(CLIPVisionModelWithProjection, "clip", source)

    def embed(model: Any, x: torch.Tensor) -> torch.Tensor:
        return model(pixel_values=x).image_embeds

    return FrozenNetwork("clip", source, weights, model, model.config.projection_dim, embed, _CLIP)


def _vit_mae(source: str) -> FrozenNetwork:
    """The class token, nothing masked; base: 768 values."""
    try:
        from transformers import ViTMAEModel
    except ImportError as error:
        raise _missing("vit_mae") from error
    model, weights = _pretrained(ViTMAEModel, "vit_mae", source, mask_ratio=0.0)

    def embed(model: Any, x: torch.Tensor) -> torch.Tensor:
        # The model shuffles its patches by this noise even if it masks none; rising noise leaves them as they are.
        noise = torch.arange(float(model.embeddings.patch_embeddings.num_patches)).expand(len(x), -1)
        return model(pixel_values=x, noise=noise).last_hidden_state[:, 0]

    return FrozenNetwork("vit_mae", source, weights, model, model.config.hidden_size, embed, _IMAGENET)


def _dino(source: str) -> FrozenNetwork:
    """The pooled features of a ResNet-50: 2048 values."""
    try:
        import timm
    except ImportError as error:
        raise _missing("dino") from error
    weights = Path(source) if Path(source).is_file() else model_file(source, _WEIGHTS)
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
    """A key without what training code puts before it."""
    return key.removeprefix("module.").removeprefix("backbone.")


def _pretrained(model_class: Any, name: str, source: str, **settings: float) -> tuple[Any, Path]:
    """A transformers model and its weights file; refused if any of its weights is not in the file."""
    from transformers.utils import logging

    # The parts that are left out (CLIP's text model, the MAE's decoder) are no news; the check below says what matters.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model_file(source, "config.json")
    weights = model_file(source, _WEIGHTS)
    try:
        model, found = model_class.from_pretrained(
            weights.parent,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            dtype=torch.float32,
            **settings,
        )
    except Exception as error:  # transformers raises many kinds; each means that the files are no such model.
        raise _other_weights(name, weights, model_class.__name__) from error
    if found["missing_keys"] or model.config.image_size != SIDE:
        raise _other_weights(name, weights, f"{model_class.__name__} for images of {SIDE} pixels")
    return model, weights


def _missing(name: str) -> MissingExtraError:
    return MissingExtraError(f"The encoder {name!r}", "encoders")


def _other_weights(name: str, weights: Path, expected: str) -> BapsError:
    return BapsError(
        f"{weights} does not hold the weights of {expected}, which the encoder {name!r} needs. Give the folder or the "
        "hub id of such a model."
    )
