"""The visual prompt: a small local network that changes an image so that the black box does better on it.

It works in two steps. ``code`` is learned and differentiable: from the features of an image (and, as published, the
click) to a small description of the change. ``apply`` is fixed: it carries the change out. Optimisers may search in
the weights of the network (SPSA-GC) or in the space of the codes (prompt-space optimisation).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from baps.adapters.visual_prompt.encoder import Encoder
from baps.errors import InputError
from baps.prompts import Prompt

CONDITIONS = ("label", "click")


class VisualPrompt(nn.Module, ABC):
    """Base of all visual prompts. Untrained, it changes nothing.

    Args:
        encoder: gives the features that it takes; frozen, and no part of its state.
        condition: what the change depends on beside the image: ``label``, nothing but the label that the adapter is
            for, so that one encoding of the changed image serves every click; or ``click``, as published.

    Raises:
        InputError: if there is no such condition.
    """

    kind: ClassVar[str]
    """Its name in settings and records."""

    conditioned_on_click: bool
    """Whether the change depends on the click."""

    def __init__(self, encoder: Encoder, condition: str) -> None:
        if condition not in CONDITIONS:
            raise InputError(f"There is no condition named {condition!r}. Known ones: {', '.join(CONDITIONS)}.")
        super().__init__()
        self.encoder, self.condition = encoder, condition
        self.conditioned_on_click = condition == "click"

    def record(self) -> dict[str, Any]:
        """What ``visual_prompt_from_record`` needs beside the state: ``kind``, ``condition`` and ``encoder``."""
        return {"kind": self.kind, "condition": self.condition, "encoder": self.encoder.record()}

    @abstractmethod
    def code(self, features: torch.Tensor, prompts: Sequence[Prompt], side: int) -> torch.Tensor:
        """Describe the change for a batch.

        Args:
            features: of the encoder, (B, encoder.length).
            prompts: one an image, pixels of a canvas of ``side`` pixels.

        Returns:
            Codes, (B, ...); differentiable in the weights.
        """

    def forward(self, features: torch.Tensor, prompts: Sequence[Prompt], side: int) -> torch.Tensor:
        """As ``code``."""
        return self.code(features, prompts, side)

    @abstractmethod
    def unrounded(self, images: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Carry the change out, differentiably, with no regard to the range of grey levels.

        Args:
            images: (B, 3, S, S) float in [0, 255].
            code: as ``code`` returns it, or D codes an image, (D * B, ...), the first of every image first.

        Returns:
            Changed images, (B, 3, S, S) or (D * B, 3, S, S).
        """

    def apply_code(self, images: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """As ``unrounded``, rounded and clipped to whole grey levels, 0 to 255, as the black box takes them."""
        return self.unrounded(images, code).round().clamp(0, 255)

    @abstractmethod
    def directions(self, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
        """Random directions in the space of codes, of the given shape (B, ...) and about unit size an entry."""

    @torch.no_grad()
    def change(self, images: torch.Tensor, features: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Images (B, 3, S, S) in [0, 255], changed for the black box."""
        return self.apply_code(images, self.code(features, prompts, images.shape[-1]))
