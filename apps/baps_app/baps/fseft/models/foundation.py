"""The interface of foundation models: a network that computes features of every voxel, and a linear head on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from baps.errors import InputError
from baps.fseft.models.organ_names import class_index


class FoundationModel(nn.Module):
    """A segmentation network in two parts; each class has its own sigmoid, because classes may overlap.

    Args:
        new_body: builds the network from images (B, 1, H, W, D) to penultimate features (B, C, H, W, D), with random
            weights.
        channels: C.
        classes: names of the head's outputs, in order; empty for weights without a linear head.
        multiple: the sides of an image must be multiples of it, or of one number for each axis, and at least twice as
            long; otherwise nothing is left to normalise in the coarsest features.
        encoder: names of the body's modules that form the encoder.
        decoder: names of the body's modules that form the decoder, from the coarsest features to the penultimate ones.
    """

    def __init__(
        self,
        new_body: Callable[[], nn.Module],
        channels: int,
        classes: Sequence[str],
        multiple: int | tuple[int, int, int],
        encoder: Sequence[str],
        decoder: Sequence[str],
    ) -> None:
        super().__init__()
        self.new_body = new_body
        self.body = new_body()
        self.channels = channels
        self.classes = tuple(classes)
        self.multiple = multiple
        self.head = nn.Conv3d(channels, len(self.classes), 1) if self.classes else None
        self._encoder, self._decoder = tuple(encoder), tuple(decoder)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Compute penultimate features, the input of the head.

        Args:
            images: (B, 1, H, W, D) in [0, 1].

        Returns:
            (B, C, H, W, D).

        Raises:
            InputError: if the images have another shape.
        """
        multiples = (self.multiple,) * 3 if isinstance(self.multiple, int) else self.multiple
        sides = zip(images.shape[2:], multiples, strict=False)
        if images.ndim != 5 or images.shape[1] != 1 or any(n % k or n < 2 * k for n, k in sides):
            raise InputError(
                f"The model takes images (B, 1, H, W, D) whose sides are multiples of {self.multiple} and at least "
                f"twice as long, not {tuple(images.shape)}. Crop or pad them, or use a sliding window."
            )
        features: torch.Tensor = self.body(images)
        return features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the logits of all classes.

        Args:
            images: (B, 1, H, W, D) in [0, 1].

        Returns:
            (B, K, H, W, D).

        Raises:
            InputError: if the images have another shape, or the weights have no linear head.
        """
        if self.head is None:
            raise InputError("These weights have no linear head, so they have no classes to segment. Adapt them first.")
        logits: torch.Tensor = self.head(self.features(images))
        return logits

    def select_logits(self, scale: float) -> None:
        """Make the head select the last K channels of the features, where the body computes the logits itself.

        Args:
            scale: the number by which the body divides them.
        """
        assert self.head is not None and self.head.bias is not None
        with torch.no_grad():
            self.head.bias.zero_()
            self.head.weight.zero_()
            self.head.weight[:, -len(self.classes) :].flatten(1).fill_diagonal_(scale)

    def index(self, organ: str) -> int | None:
        """Find the index of an organ among the classes, see ``class_index``.

        Args:
            organ: the name of the organ.

        Returns:
            The index, or None if the model does not know the organ.
        """
        return class_index(self.classes, organ)

    def encoder(self) -> Iterator[nn.Module]:
        """Iterate over the modules of the encoder.

        Returns:
            The modules.
        """
        return (self.body.get_submodule(name) for name in self._encoder)

    def decoder(self) -> Iterator[nn.Module]:
        """Iterate over the modules of the decoder, without the head.

        Returns:
            The modules, from the coarsest features up.
        """
        return (self.body.get_submodule(name) for name in self._decoder)
