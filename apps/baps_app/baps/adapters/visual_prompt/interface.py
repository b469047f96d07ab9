"""Define the interface of visual prompts: small local networks that change an image before the black box sees it.

A visual prompt works in two steps. ``code`` is learned and differentiable: it maps the features of an image (and, as
published, the click) to a short description of the change. ``apply_unrounded`` is fixed and carries out the change.
Optimisers search in the weights of the network (SPSA-GC) or in the space of codes (prompt-space optimisation).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from baps.adapters.visual_prompt.encoder import Encoder
from baps.errors import InputError
from baps.prompts import Prompt

CONDITIONS = ("label", "click")
"""What the change of an image can depend on."""


class VisualPrompt(nn.Module, ABC):
    """Base class of visual prompts. Untrained, a visual prompt changes nothing.

    Args:
        encoder: frozen encoder that supplies the features; its weights are not part of the state.
        condition: what the change depends on beside the image: ``label`` for nothing but the label that the adapter is
            for, so that one encoding of the changed image serves every click; or ``click``, as published.

    Attributes:
        kind: name in settings and records.
        general_weights: names of the weights that are the same for all images, which learn at the full rate.
        conditioned_on_click: whether the change depends on the click.

    Raises:
        InputError: if there is no such condition.
    """

    kind: ClassVar[str]
    general_weights: ClassVar[tuple[str, ...]] = ()

    conditioned_on_click: bool

    def __init__(self, encoder: Encoder, condition: str) -> None:
        if condition not in CONDITIONS:
            raise InputError(f"There is no condition named {condition!r}. Known ones: {', '.join(CONDITIONS)}.")
        super().__init__()
        self.encoder, self.condition = encoder, condition
        self.conditioned_on_click = condition == "click"

    def to_dict(self) -> dict[str, Any]:
        """Describe the visual prompt for the record; ``visual_prompt_from_record`` builds an untrained copy from it.

        Returns:
            ``kind``, ``condition`` and ``encoder``.
        """
        return {"kind": self.kind, "condition": self.condition, "encoder": self.encoder.to_dict()}

    @abstractmethod
    def code(self, features: torch.Tensor, prompts: Sequence[Prompt], images: torch.Tensor) -> torch.Tensor:
        """Compute the codes of a batch, which describe the changes.

        Args:
            features: features from the encoder, (B, encoder.length).
            prompts: one per image, in pixels of the image.
            images: images, (B, 3, S, S) float in [0, 255].

        Returns:
            Codes, (B, ...), differentiable in the weights.
        """

    def forward(self, features: torch.Tensor, prompts: Sequence[Prompt], images: torch.Tensor) -> torch.Tensor:
        """Call ``code``.

        Args:
            features: features from the encoder, (B, encoder.length).
            prompts: one per image, in pixels of the image.
            images: images, (B, 3, S, S) float in [0, 255].

        Returns:
            Codes, (B, ...).
        """
        return self.code(features, prompts, images)

    def encoding_key(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> Hashable:
        """Return what the change of an image depends on beside the image. Equal keys share an encoding.

        Args:
            images: one image, (1, 3, S, S) float in [0, 255].
            prompts: its prompt, in pixels of the image.

        Returns:
            The prompt, or None if the change does not depend on it.
        """
        return prompts[0] if self.conditioned_on_click else None

    @abstractmethod
    def apply_unrounded(self, images: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Carry out the changes, differentiably and without limits on the grey levels.

        Args:
            images: images, (B, 3, S, S) float in [0, 255].
            code: what ``code`` returned, or D codes per image, (D * B, ...), the first codes of all images first.

        Returns:
            Changed images, (B, 3, S, S) or (D * B, 3, S, S).
        """

    def apply_code(self, images: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Carry out the changes, and round and clip to the grey levels 0 to 255 that the black box takes.

        Args:
            images: see ``apply_unrounded``.
            code: see ``apply_unrounded``.

        Returns:
            Changed images, (B, 3, S, S) or (D * B, 3, S, S).
        """
        return self.apply_unrounded(images, code).round().clamp(0, 255)

    @abstractmethod
    def sample_directions(self, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
        """Draw random directions in the space of codes, each entry of about unit size.

        Args:
            shape: shape of the codes, (B, ...).
            generator: random generator.

        Returns:
            The directions, of that shape.
        """

    @torch.no_grad()
    def transform_images(self, images: torch.Tensor, features: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Change images for the black box.

        Args:
            images: images, (B, 3, S, S) float in [0, 255].
            features: features from the encoder, (B, encoder.length).
            prompts: one per image, in pixels of the image.

        Returns:
            Changed images, (B, 3, S, S), of whole grey levels.
        """
        return self.apply_code(images, self.code(features, prompts, images))
