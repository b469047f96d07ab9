"""The frozen encoder: what a visual prompt knows of an image. It is never the black box itself.

The default is no network but image statistics. CLIP, ViT-MAE and DINO, as published, are in ``networks``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from ..errors import InputError
from .statistics import STATISTICS, image_statistics

ENCODERS = ("statistics", "clip", "vit_mae", "dino")


class Encoder(ABC):
    """Features of an image. No ``nn.Module``, so that its weights never get into those of a visual prompt."""

    name: str
    """One of ``ENCODERS``."""

    length: int
    """Number of features of an image."""

    @abstractmethod
    def record(self) -> dict[str, str]:
        """What it takes to load the same encoder again: ``name``, ``source`` and the ``sha256`` of its weights."""

    @abstractmethod
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features (B, length) float32, without a graph, of images (B, 3, S, S) float in [0, 255]."""


class ImageStatistics(Encoder):
    """The default: ``image_statistics``."""

    name = "statistics"
    length = STATISTICS

    def record(self) -> dict[str, str]:
        return {"name": self.name, "source": "", "sha256": ""}

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        return image_statistics(images)


def load_encoder(name: str = "statistics", source: str = "") -> Encoder:
    """Load an encoder; one that is in use already is shared.

    Args:
        name: one of ``ENCODERS``.
        source: for a network, a local folder with ``config.json`` and ``model.safetensors``, for ``dino`` also a
            checkpoint, or a hub id, ``owner/name`` or ``owner/name@revision``. Empty: the published model's hub id.

    Raises:
        InputError: if there is no such encoder, or the source does not go with it.
        BapsError: if the extra is not installed, or the model cannot be found or read.
    """
    if name not in ENCODERS:
        raise InputError(f"There is no encoder named {name!r}. Known ones: {', '.join(ENCODERS)}.")
    if name == "statistics":
        if source:
            raise InputError(f"The encoder 'statistics' has no weights; leave out its source {source!r}.")
        return ImageStatistics()
    from .networks import load_network

    return load_network(name, source)
