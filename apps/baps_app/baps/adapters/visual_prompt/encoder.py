"""The frozen encoder: what a visual prompt knows of an image. It is never the black box itself.

The default is no network but image statistics (``statistics``). CLIP, ViT-MAE and DINO, as published, are in
``networks``; ``loading`` makes one from its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch


class Encoder(ABC):
    """Features of an image. No ``nn.Module``, so that its weights never get into those of a visual prompt."""

    name: str
    """One of ``loading.ENCODERS``."""

    length: int
    """Number of features of an image."""

    @abstractmethod
    def record(self) -> dict[str, str]:
        """What it takes to load the same encoder again: ``name``, ``source`` and the ``sha256`` of its weights."""

    @abstractmethod
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features (B, length) float32, without a graph, of images (B, 3, S, S) float in [0, 255]."""
