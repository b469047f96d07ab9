"""Define the frozen encoder, which supplies a visual prompt with features of an image.

It is never the black box itself. The default is image statistics without a network (``statistics``). CLIP, ViT-MAE and
DINO, as published, are in ``networks``; ``loading`` makes an encoder from its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch


class Encoder(ABC):
    """Computes features of an image. It is not an ``nn.Module``, so its weights never become those of a visual prompt.

    Attributes:
        name: name of the encoder, one of ``loading.ENCODERS``.
        length: number of features per image.
    """

    name: str

    length: int

    @abstractmethod
    def to_dict(self) -> dict[str, str]:
        """Describe the encoder for the record of an adapter, so that the same one can be loaded again.

        Returns:
            ``name``, ``source``, and ``sha256`` of the weights.
        """

    @abstractmethod
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the features of images, without a graph.

        Args:
            images: images, (B, 3, S, S) float in [0, 255].

        Returns:
            Features, (B, length) float32.
        """
